"""The teacher's half of a run: the corpus, the teacher, its attributions, and the rationales that students learn from.

`jobs/wiring.py` goes on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from jobs.slices import features_slice, first_rows, model_slice, stage_slice
from kd.attribution.engine import Attribute
from kd.config import Config
from kd.errors import ConfigError, StageError
from kd.examples import UNSPACED, finished
from kd.manifests import Manifest
from kd.models import ModelConfig, ModelSource, identity
from kd.rationales import Rationalise
from kd.ray_data import Pool
from kd.rows import Attribution, Example, Features, RationaleRow, Row
from kd.shards import Work, completed
from kd.spans import segmenter
from kd.specs import T5Spec
from kd.store import Store
from kd.training.config import LoopConfig, TeachConfig
from kd.training.features import Featurise
from kd.training.objectives import AnyObjective
from kd.training.runs import MODEL, Queue, Run, trained
from kd.vocabulary import make_tokenizer, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EXAMPLES = "examples"
TEACHER = "teacher"


@dataclass(frozen=True)
class TeacherWiring:
    """The works up to the rationales, and what those of the students have in common with them; see `Wiring`."""

    config: Config
    store: Store

    @cached_property
    def examples(self) -> Manifest:
        """The finished corpus."""
        if self.examples_if_any is None:
            raise StageError(f"{self.store.path(EXAMPLES)} is not complete; run the stage 'prepare' first")
        return self.examples_if_any

    @cached_property
    def examples_if_any(self) -> Manifest | None:
        """The corpus if it is finished. Raises StoreError if it is another one than the config's."""
        return finished(self.store, EXAMPLES, self.config.task, self.config.prepare)

    @property
    def pool(self) -> Pool:
        """The actors that work over shards runs on."""
        cluster = self.config.cluster
        gpus = cluster.gpus_per_actor if cluster.device == "cuda" else 0
        return Pool(cluster.min_actors, cluster.max_actors, cluster.cpus_per_actor, gpus, cluster.actor_labels)

    @property
    def cpu_pool(self) -> Pool:
        """The actors of work that needs no model on a GPU."""
        cluster = self.config.cluster
        return Pool(cluster.min_actors, cluster.max_actors, cluster.cpus_per_actor, 0)

    # --- teacher ---

    def teaching_features(self) -> Work:
        """What the teacher learns from: every labelled row of train."""
        teach = self._teach
        recipe = Featurise(teach.objective, self.untrained(self._explained_model, teach.seed))
        rows = EXAMPLES, self.examples
        return self._features("teach features", TEACHER, Example, rows, recipe, self._teacher_identity, "teach", teach)

    def teaching(self) -> Run:
        """The teacher's own training."""
        teach, work = self._teach, self.teaching_features()
        return self._run("teach", TEACHER, teach.seed, self._explained_model, teach.objective, work, TEACHER)

    def teaching_queue(self) -> Queue:
        """The teacher's training, ready to start."""
        return self._queue("teach", [self.teaching()], self._teach)

    @cached_property
    def teacher(self) -> ModelSource:
        """The model that is explained: as it was named, or as `teach` left it."""
        if self.config.teach is None:
            return self.untrained(self._explained_model, 0)
        folder, _ = trained(self.store, self.teaching(), self.config.teach)
        return ModelSource(self._explained_model, self.store, f"{folder}/{MODEL}")

    @cached_property
    def teacher_digest(self) -> str:
        """What identifies the teacher in the manifests of what it made."""
        if self.config.teach is None:
            return self._teacher_identity
        return trained(self.store, self.teaching(), self.config.teach)[1].digest

    @cached_property
    def _teacher_identity(self) -> str:
        return identity(self._explained_model, self._tokenizer(self._explained_model))

    @property
    def _teach(self) -> TeachConfig:
        if self.config.teach is None:
            raise StageError("the config has no `teach`: the teacher is used as it is")
        return self.config.teach

    @property
    def _explained_model(self) -> ModelConfig:
        if self.config.teacher is None:
            raise StageError("the config has no `teacher`, so nothing is explained; the stages are prepare, rationalize and on")
        return self.config.teacher

    # --- rationales ---

    def attributions(self) -> Work:
        """The teacher explained on the splits that the config names."""
        config, cluster = self.config.attribution, self.config.cluster
        found_by = self._segmenter if config.method.by_word else None
        return Work(
            title="attribute",
            recipe=Attribute(config, self.teacher, cluster.model_device, cluster.threads_per_actor, found_by),
            source=EXAMPLES,
            target=f"attributions/{config.method.type.replace('_', '-')}",
            reads=Example,
            writes=Attribution,
            shards=[shard for split, rows in config.splits.items() for shard in first_rows(self.examples.shards_of(split), rows)],
            config=stage_slice(config) | {"teacher": model_slice(self._explained_model)} | _named(found_by),
            inputs={EXAMPLES: self.examples.digest, TEACHER: self.teacher_digest},
            max_error_frac=config.max_error_frac,
            max_error_key="attribution.max_error_frac",
        )

    def rationales(self) -> dict[str, Work]:
        """Every source of rationales over the attributed rows, by its name; without a teacher over train as it is."""
        has_teacher, config = self.config.teacher is not None, self.config.rationales
        folder, rows = self._attributed if has_teacher else (EXAMPLES, self.examples)
        settings = config.model_dump(mode="json", exclude={"sources", "max_error_frac"}) | _named(self._segmenter)
        return {
            source.name: Work(
                title="rationalize",
                recipe=Rationalise(config, source, self._segmenter),
                source=folder,
                target=f"rationales/{source.name}",
                reads=Attribution if has_teacher else Example,
                writes=RationaleRow,
                shards=rows.shards if has_teacher else rows.shards_of("train"),
                config=settings | {"source": source.model_dump(mode="json")},
                inputs={"attributions" if has_teacher else EXAMPLES: rows.digest},
                max_error_frac=config.max_error_frac,
                max_error_key="rationales.max_error_frac",
            )
            for source in config.sources
        }

    @property
    def _segmenter(self) -> str | None:
        """What finds the words of text without spaces; None where the corpus has no such text."""
        return segmenter() if self.examples.counts.get(UNSPACED) else None

    @cached_property
    def _attributed(self) -> tuple[str, Manifest]:
        return completed(self.store, self.attributions())

    # --- what these and the students have in common ---

    def make_tokenizers(self) -> None:
        """Train the tokenizers that models from a spec need, where they are not there yet.

        Raises:
            ConfigError: a tokenizer cannot tell the task's labels apart.
        """
        for role, config in (("teacher", self.config.teacher), ("student", self.config.student)):
            if config is not None:
                check = partial(self._check_tokenizer, role)
                make_tokenizer(self.store, EXAMPLES, self.examples, config, self._phrases, check)

    def _check_tokenizer(self, role: str, config: ModelConfig, tokenizer: "PreTrainedTokenizerFast") -> None:
        from kd.families.labels import check_fixed_labels
        from kd.families.opening import open_family
        from kd.loading import without_weights

        if isinstance(config.spec, T5Spec):
            try:
                check_fixed_labels(open_family(without_weights(config.spec, tokenizer), config), self.config.task.fixed_labels)
            except ConfigError as error:
                raise ConfigError(f"the {role}: {error}; spec.vocab_size and spec.lowercase decide what it knows") from error

    @property
    def _phrases(self) -> list[str]:
        objectives = [variant.objective for variant in self.config.training.variants]
        return sorted({phrase for objective in objectives for phrase in objective.prefixes})

    def _tokenizer(self, config: ModelConfig) -> str | None:
        return tokenizer_folder(self.examples, config, self._phrases)

    def untrained(self, config: ModelConfig, seed: int) -> ModelSource:
        """A model as the config gives it, with the tokenizer that its spec may need."""
        return ModelSource(config, self.store, tokenizer_folder=self._tokenizer(config), seed=seed)

    def _run(
        self, stage: str, variant: str, seed: int, model: ModelConfig, objective: AnyObjective, work: Work, target: str
    ) -> Run:
        folder = self.store.find_folder(work.target, work.digest)
        features = self.store.manifest(folder) if folder else None
        if folder is None or features is None:
            raise StageError(f"{self.store.path(work.target)} is not complete for this config; run the stage {stage!r} first")
        return Run(
            stage=stage,
            variant=variant,
            seed=seed,
            model=self.untrained(model, seed),
            objective=objective,
            features=folder,
            shards=work.shards,
            examples=EXAMPLES,
            validation=self.examples.shards_of("validation"),
            target=target,
            inputs={EXAMPLES: self.examples.digest, "features": features.digest},
        )

    def _queue(self, stage: str, runs: Sequence[Run], loop: LoopConfig) -> Queue:
        return Queue.of(self.store, stage, runs, loop, self.config.cluster.device, self.config.task.judge)

    @staticmethod
    def _features(
        title: str,
        owner: str,
        reads: type[Row],
        rows: tuple[str, Manifest],
        recipe: Featurise,
        model: str,
        section: str,
        loop: LoopConfig,
    ) -> Work:
        """The training rows of a folder, written for a model of this identity; `section` of the config is its loop's."""
        folder, manifest = rows
        return Work(
            title=title,
            recipe=recipe,
            source=folder,
            target=f"{owner}/features",
            reads=reads,
            writes=Features,
            shards=manifest.shards_of("train"),
            config=features_slice(recipe, model),
            inputs={folder: manifest.digest},
            max_error_frac=loop.max_error_frac,
            max_error_key=f"{section}.max_error_frac",
        )


def _named(found_by: str | None) -> dict[str, str]:
    return {} if found_by is None else {"segmenter": found_by}
