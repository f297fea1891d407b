"""Which stage reads what: every piece of work of a run, derived from its config and from what is finished upstream.

The stages in order: examples, teacher, attributions, rationales (`jobs/teacher_wiring.py`), students, predictions. Asking for
a stage whose upstream is not finished is a StageError that names the one to run.
"""

from dataclasses import dataclass
from functools import cached_property

from jobs.slices import first_rows, model_slice, stage_slice
from jobs.teacher_wiring import EXAMPLES, TEACHER, TeacherWiring
from kd.evaluation.answers import Answer
from kd.models import ModelSource, identity
from kd.rows import Example, Prediction, RationaleRow
from kd.shards import Work, completed
from kd.training.config import Variant
from kd.training.features import Featurise
from kd.training.runs import MODEL, Failure, Queue, Run, failure, trained


@dataclass(frozen=True)
class Wiring(TeacherWiring):
    """The works of one run: each member looks at the run directory and says what a stage would do.

    Only `make_tokenizers` and the two queues, which take their runs' folders, write there.
    """

    # --- students ---

    @property
    def pairs(self) -> list[tuple[Variant, int]]:
        """Every student: each variant with each seed, seed by seed."""
        return [(variant, seed) for seed in self.config.training.seeds for variant in self.config.training.variants]

    def student_features(self) -> list[Work]:
        """What the students of each variant learn from, in the order of the variants."""
        return [self._student_features(variant) for variant in self.config.training.variants]

    def student(self, variant: Variant, seed: int) -> Run:
        """One student's training. Variants of one seed see the same rows in the same order."""
        work, target = self._student_features(variant), f"students/{variant.name}/{seed}"
        return self._run("train", variant.name, seed, self.config.student, variant.objective, work, target)

    def students(self) -> list[Run]:
        """Every student's training."""
        return [self.student(*pair) for pair in self.pairs]

    def training_queue(self) -> Queue:
        """The students' training, ready to start."""
        return self._queue("train", self.students(), self.config.training)

    def _student_features(self, variant: Variant) -> Work:
        training, owner = self.config.training, f"students/{variant.name}"
        rows = completed(self.store, self.rationales()[variant.source])
        recipe = Featurise(variant.objective, self.untrained(self.config.student, 0), training.answers)
        return self._features("features", owner, RationaleRow, rows, recipe, self._student_identity, "training", training)

    @cached_property
    def _student_identity(self) -> str:
        return identity(self.config.student, self._tokenizer(self.config.student))

    # --- predictions ---

    def predictions(self) -> list[Work]:
        """The evaluated split answered by the teacher, if there is one, and by every student that did not fail."""
        teacher = [self.teacher_predictions()] if self.config.teacher is not None else []
        failed = self.failed_students()
        pairs = [(variant, seed) for variant, seed in self.pairs if f"{variant.name}/{seed}" not in failed]
        return [*teacher, *(self.student_predictions(*pair) for pair in pairs)]

    def failed_students(self) -> dict[str, Failure]:
        """Why there is no model, by the name of the run, where training has given it up."""
        found = [failure(self.store, self.student(*pair), self.config.training) for pair in self.pairs]
        return {each.run: each for each in found if each is not None}

    def teacher_predictions(self) -> Work:
        """The evaluated split answered by the teacher."""
        prefix = self.config.teach.objective.answer_prefix if self.config.teach else ""
        return self._answers(TEACHER, 0, self.teacher, prefix, self.teacher_digest)

    def student_predictions(self, variant: Variant, seed: int) -> Work:
        """The evaluated split answered by one student."""
        folder, manifest = trained(self.store, self.student(variant, seed), self.config.training)
        source = ModelSource(self.config.student, self.store, f"{folder}/{MODEL}")
        return self._answers(variant.name, seed, source, variant.objective.answer_prefix, manifest.digest)

    def _answers(self, variant: str, seed: int, source: ModelSource, prefix: str, model: str) -> Work:
        config, cluster = self.config.evaluation, self.config.cluster
        device, threads = cluster.model_device, cluster.threads_per_actor
        asked = {"prefix": prefix, "model": model_slice(source.config), "variant": variant, "seed": seed}
        asked |= {"choice_logprobs": "whole"} if config.length_normalised else {}
        return Work(
            title="evaluate",
            recipe=Answer(config, self.config.task, source, prefix, variant, seed, device, threads),
            source=EXAMPLES,
            target=f"predictions/{variant}/{seed}",
            reads=Example,
            writes=Prediction,
            shards=first_rows(self.examples.shards_of(config.split), config.limit_rows),
            config=stage_slice(config) | asked,
            inputs={EXAMPLES: self.examples.digest, "model": model},
            max_error_frac=config.max_error_frac,
            max_error_key="evaluation.max_error_frac",
        )
