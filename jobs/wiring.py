"""Which stage reads what: every piece of work of a run, derived from its config and from what is finished upstream.

The stages in order: examples, teacher, attributions, rationales, students, predictions. Asking for a stage whose
upstream is not finished is a StageError that names the one to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kd.attribution.engine import Attribute, AttributionConfig
from kd.config import Config
from kd.errors import StageError
from kd.evaluation.answers import Answer, EvaluationConfig
from kd.examples import finished
from kd.models import ModelConfig, ModelSource
from kd.rationales import Rationalise
from kd.ray_data import Pool
from kd.rows import Attribution, Example, Features, Prediction, RationaleRow
from kd.shards import Work, completed
from kd.store import Manifest, Shard, Store
from kd.training.config import Variant
from kd.training.features import Featurise
from kd.training.objectives import AnyObjective
from kd.training.runs import MODEL, Queue, Run, trained
from kd.vocabulary import tokenizer_folder

EXAMPLES = "examples"
TEACHER = "teacher"


@dataclass(frozen=True)
class Wiring:
    """The works of one run. Nothing is done here: each member says what a stage would do."""

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
        return Pool(cluster.min_actors, cluster.max_actors, cluster.cpus_per_actor, gpus)

    @property
    def cpu_pool(self) -> Pool:
        """The actors of work that needs no model on a GPU."""
        cluster = self.config.cluster
        return Pool(cluster.min_actors, cluster.max_actors, cluster.cpus_per_actor, 0)

    # --- teacher ---

    def teaching_features(self) -> Work:
        """What the teacher learns from: every labelled row of train."""
        if self.config.teach is None:
            raise StageError("the config has no `teach`: the teacher is used as it is")
        source = self._untrained(self.config.teacher, self.config.teach.seed)
        recipe = Featurise(self.config.teach.objective, source)
        return self._features("teach features", recipe, f"{TEACHER}/features", EXAMPLES, self.examples, Example)

    def teaching(self) -> Run:
        """The teacher's own training."""
        work = self.teaching_features()
        assert self.config.teach is not None  # teaching_features has checked it
        return self._run("teach", TEACHER, self.config.teach.seed, self.config.teach.objective, work, TEACHER)

    def teaching_queue(self) -> Queue:
        """The teacher's training, ready to start."""
        run, teach = self.teaching(), self.config.teach
        assert teach is not None  # teaching has checked it
        return Queue.of(self.store, "teach", [run], teach, self.config.cluster.device, self.config.task.judge)

    @cached_property
    def teacher(self) -> ModelSource:
        """The model that is explained: as it was named, or as `teach` left it."""
        if self.config.teach is None:
            return self._untrained(self.config.teacher, 0)
        folder, _ = trained(self.store, self.teaching(), self.config.teach)
        return ModelSource(self.config.teacher, self.store, f"{folder}/{MODEL}")

    @cached_property
    def teacher_digest(self) -> str:
        """What identifies the teacher in the manifests of what it made."""
        if self.config.teach is None:
            return f"{self.config.teacher.name}@{self.config.teacher.revision}"
        return trained(self.store, self.teaching(), self.config.teach)[1].digest

    # --- rationales ---

    def attributions(self) -> Work:
        """The teacher explained on the splits that the config names."""
        config, cluster = self.config.attribution, self.config.cluster
        limits = config.splits
        return Work(
            title="attribute",
            recipe=Attribute(config, self.teacher, cluster.device, cluster.threads_per_actor),
            source=EXAMPLES,
            target=f"attributions/{config.method.type.replace('_', '-')}",
            reads=Example,
            writes=Attribution,
            shards=[shard for split, rows in limits.items() for shard in first_rows(self.examples.shards_of(split), rows)],
            config=_matters(config) | {"teacher": _limits(self.config.teacher)},
            inputs={EXAMPLES: self.examples.digest, TEACHER: self.teacher_digest},
            max_error_frac=config.max_error_frac,
            max_error_key="attribution.max_error_frac",
        )

    def rationales(self) -> dict[str, Work]:
        """Every source of rationales over the attributed rows, by its name."""
        folder, attributions = completed(self.store, self.attributions())
        config = self.config.rationales
        settings = config.model_dump(mode="json", exclude={"sources", "max_error_frac"})
        return {
            source.name: Work(
                title="rationalize",
                recipe=Rationalise(config, source),
                source=folder,
                target=f"rationales/{source.name}",
                reads=Attribution,
                writes=RationaleRow,
                shards=attributions.shards,
                config=settings | {"source": source.model_dump(mode="json")},
                inputs={"attributions": attributions.digest},
                max_error_frac=config.max_error_frac,
                max_error_key="rationales.max_error_frac",
            )
            for source in config.sources
        }

    # --- students ---

    def student_features(self) -> list[Work]:
        """What the students of each variant learn from, in the order of the variants."""
        return [self._student_features(variant, self.rationales()) for variant in self.config.training.variants]

    def students(self) -> list[Run]:
        """Every variant with every seed. Variants of one seed see the same rows in the same order."""
        rationales = self.rationales()
        works = [(variant, self._student_features(variant, rationales)) for variant in self.config.training.variants]
        return [
            self._run("train", variant.name, seed, variant.objective, work, f"students/{variant.name}/{seed}")
            for seed in self.config.training.seeds
            for variant, work in works
        ]

    def training_queue(self) -> Queue:
        """The students' training, ready to start."""
        runs, cluster = self.students(), self.config.cluster
        return Queue.of(self.store, "train", runs, self.config.training, cluster.device, self.config.task.judge)

    def _student_features(self, variant: Variant, rationales: dict[str, Work]) -> Work:
        folder, manifest = completed(self.store, rationales[variant.source])
        recipe = Featurise(variant.objective, self._untrained(self.config.student, 0))
        return self._features("features", recipe, f"students/{variant.name}/features", folder, manifest, RationaleRow)

    # --- predictions ---

    def predictions(self) -> list[Work]:
        """The evaluated split answered by the teacher and by every student."""
        prefix = self.config.teach.objective.answer_prefix if self.config.teach else ""
        answering = [self._answers(TEACHER, 0, self.config.teacher, self.teacher, prefix, self.teacher_digest)]
        for run in self.students():
            folder, manifest = trained(self.store, run, self.config.training)
            source = ModelSource(self.config.student, self.store, f"{folder}/{MODEL}")
            prefix = run.objective.answer_prefix
            answering.append(self._answers(run.variant, run.seed, self.config.student, source, prefix, manifest.digest))
        return answering

    def _answers(self, variant: str, seed: int, limits: ModelConfig, source: ModelSource, prefix: str, model: str) -> Work:
        config, cluster = self.config.evaluation, self.config.cluster
        return Work(
            title="evaluate",
            recipe=Answer(config, self.config.task, source, prefix, variant, seed, cluster.device, cluster.threads_per_actor),
            source=EXAMPLES,
            target=f"predictions/{variant}/{seed}",
            reads=Example,
            writes=Prediction,
            shards=first_rows(self.examples.shards_of(config.split), config.limit_rows),
            config=_matters(config) | {"prefix": prefix, "model": _limits(limits), "variant": variant, "seed": seed},
            inputs={EXAMPLES: self.examples.digest, "model": model},
            max_error_frac=config.max_error_frac,
            max_error_key="evaluation.max_error_frac",
        )

    # --- what these have in common ---

    def _untrained(self, config: ModelConfig, seed: int) -> ModelSource:
        """A model as the config gives it, with the tokenizer that its spec may need."""
        objectives = [variant.objective for variant in self.config.training.variants]
        phrases = sorted({phrase for objective in objectives for phrase in objective.prefixes})
        folder = tokenizer_folder(self.store, EXAMPLES, self.examples, config, phrases)
        return ModelSource(config, self.store, tokenizer_folder=folder, seed=seed)

    def _features(
        self, title: str, recipe: Featurise, target: str, source: str, upstream: Manifest, reads: type[Example]
    ) -> Work:
        training = self.config.teach if source == EXAMPLES and self.config.teach else self.config.training
        origin = [recipe.source.config.name, recipe.source.config.revision, recipe.source.tokenizer_folder]
        return Work(
            title=title,
            recipe=recipe,
            source=source,
            target=target,
            reads=reads,
            writes=Features,
            shards=upstream.shards_of("train"),
            config={"objective": recipe.objective.model_dump(mode="json"), "tokenizer": origin, **_limits(recipe.source.config)},
            inputs={source: upstream.digest},
            max_error_frac=training.max_error_frac,
            max_error_key=f"{'teach' if source == EXAMPLES else 'training'}.max_error_frac",
        )

    def _run(self, stage: str, variant: str, seed: int, objective: AnyObjective, work: Work, target: str) -> Run:
        folder = self.store.folder_for(work.target, work.digest)
        config = self.config.teacher if variant == TEACHER else self.config.student
        return Run(
            stage=stage,
            variant=variant,
            seed=seed,
            model=self._untrained(config, seed),
            objective=objective,
            features=folder,
            shards=work.shards,
            examples=EXAMPLES,
            validation=self.examples.shards_of("validation"),
            target=target,
            inputs={EXAMPLES: self.examples.digest, "features": work.digest},
        )


def first_rows(shards: Sequence[Shard], rows: int | None) -> list[Shard]:
    """The shards that hold the first `rows` rows, the last of them cut; all where there is no limit."""
    if rows is None:
        return list(shards)
    taken: list[Shard] = []
    for shard in shards:
        left = rows - sum(earlier.rows for earlier in taken)
        if left <= 0:
            break
        taken.append(Shard(shard.name, shard.split, min(shard.rows, left)))
    return taken


def _matters(config: AttributionConfig | EvaluationConfig) -> dict[str, object]:
    """A stage's config without what changes no row."""
    return config.model_dump(mode="json", exclude={"max_error_frac", "batch_tokens"})


def _limits(config: ModelConfig) -> dict[str, object]:
    """What of a model's config changes the rows that it makes, its origin apart."""
    return config.model_dump(mode="json", include={"dtype", "max_input_tokens", "max_answer_tokens"})
