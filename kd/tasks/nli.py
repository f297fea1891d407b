"""What the tasks of natural language inference share: two texts and three labels."""

from kd.rows import Segment
from kd.tasks.base import TaskConfig

LABELS = ["entailment", "neutral", "contradiction"]
LABEL_NAMES = {name: name for name in LABELS} | dict(zip("012", LABELS, strict=True)) | dict(zip("enc", LABELS, strict=True))
"""What corpora call the labels: by name, by index, by initial."""


class NliTask(TaskConfig):
    """Does the premise entail the hypothesis?"""

    separator: str = "</s>"
    """What stands between premise and hypothesis. Distilling step-by-step puts the tokenizer's end-of-sequence token there.
    It is written here as text, a segment of role prompt, so that rows know no tokenizer: `</s>` is that token for every T5;
    for another family name its own, or a line break."""

    @property
    def fixed_labels(self) -> list[str]:
        return LABELS

    def pair(self, premise: str, hypothesis: str) -> list[Segment]:
        """The two texts as the model reads them: segments 0 and 2, the separator between them."""
        return [Segment("premise", premise), Segment("prompt", self.separator), Segment("hypothesis", hypothesis)]
