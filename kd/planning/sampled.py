"""The sample as the run's models read it, explain it and learn it: what the stages would make of these rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kd.config import Config
from kd.cost import Shape, shape_of
from kd.errors import InputError
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import load
from kd.models import ModelSource
from kd.planning.lengths import Lengths, measured
from kd.planning.rows import attributions, done, rationales
from kd.planning.sample import SplitSample
from kd.rows import Attribution, Example, Features, RationaleRow
from kd.training.features import Featurise

LEARNED_ROWS = 200
"""Rows whose training sequences are made, at most."""


@dataclass(frozen=True)
class Sampled:
    """A run's sample. Models are opened without weights. Without a teacher nothing is explained.

    Raises:
        ConfigError, InputError: a model cannot be opened, or can read or learn no sampled row.
    """

    config: Config
    samples: Mapping[str, SplitSample]
    teacher: ModelSource | None
    student: ModelSource

    @cached_property
    def explained(self) -> dict[str, int]:
        """Rows to attribute, by split."""
        asked = self.config.attribution.splits if self.teacher else {}
        return {split: min(self.samples[split].rows, most or self.samples[split].rows) for split, most in asked.items()}

    @property
    def largest(self) -> str:
        """The split of which most rows are attributed; train where none is."""
        return max(self.explained, key=lambda split: self.explained[split], default="train")

    @property
    def rationalised(self) -> int:
        """Rows that get rationales."""
        return sum(self.explained.values()) if self.teacher else self.samples["train"].rows

    @property
    def learnt_from(self) -> int:
        """Rows of train that students learn from."""
        return self.explained["train"] if self.teacher else self.samples["train"].rows

    @property
    def validation_rows(self) -> int:
        """Rows of the validation split, labelled or not; 0 where there is none."""
        return self.samples["validation"].rows if "validation" in self.samples else 0

    @cached_property
    def teacher_family(self) -> Family | None:
        """The teacher, without weights."""
        return open_family(load(self.teacher, "meta"), self.teacher.config) if self.teacher else None

    @property
    def reader(self) -> Family:
        """The model whose tokens are counted: the teacher, or without one the student."""
        return self.teacher_family or self.student_family

    @cached_property
    def student_family(self) -> Family:
        """A student, without weights."""
        return open_family(load(self.student, "meta"), self.config.student)

    def shape(self, family: Family) -> Shape:
        """What a row costs one of these models; it is counted once."""
        if family.name not in self._shapes:
            self._shapes[family.name] = shape_of(family.loaded)
        return self._shapes[family.name]

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return {}

    @cached_property
    def lengths(self) -> dict[str, Lengths]:
        """Each split as `reader` reads it."""
        return {split: read(self.reader, sample) for split, sample in self.samples.items()}

    @cached_property
    def attributed(self) -> list[Attribution]:
        """Rows of train as attributions of their size."""
        return attributions(self.lengths["train"], self.config.attribution.method.type)

    @cached_property
    def rationales(self) -> dict[str, list[RationaleRow]]:
        """Rows of train with rationales of their size, by source."""
        return rationales(self.config.rationales, self.attributed if self.teacher else self.lengths["train"].rows)

    @cached_property
    def taught(self) -> list[Features]:
        """What rows of train teach the teacher; nothing where it is used as it is."""
        teach = self.config.teach
        if teach is None or self.teacher is None:
            return []
        return _features("teach", Featurise(teach.objective, self.teacher), self.lengths["train"].rows)

    @cached_property
    def learned(self) -> dict[str, list[Features]]:
        """What rows of train teach a student, by variant."""
        training = self.config.training
        recipes = {variant: Featurise(variant.objective, self.student, training.answers) for variant in training.variants}
        return {
            variant.name: _features(f"train, {variant.name}", recipe, self.rationales[variant.source])
            for variant, recipe in recipes.items()
        }

    @property
    def students(self) -> int:
        """How many students are trained."""
        return len(self.config.training.variants) * len(self.config.training.seeds)


def read(family: Family, sample: SplitSample) -> Lengths:
    """A split as a model reads it. Raises InputError where it can read no row."""
    found = measured(family, sample.examples)
    if not found.rows:
        raise InputError(
            f"the {sample.split} split: {family.name} can take none of the {len(sample.examples)} sampled rows, for"
            f" {', '.join(found.faults)}; see max_input_tokens and max_answer_tokens"
        )
    return found


def _features(title: str, recipe: Featurise, rows: Sequence[Example]) -> list[Features]:
    found = done(recipe, rows[:LEARNED_ROWS], Features)
    if not found:
        raise InputError(f"{title}: the model can learn none of {len(rows)} sampled rows; see its max_answer_tokens")
    return found
