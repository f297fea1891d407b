"""The runs of a stage: what is known of training without training anything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.errors import StageError
from kd.manifests import Manifest, Shard, digest
from kd.models import ModelSource
from kd.store import Store
from kd.training.config import LoopConfig
from kd.training.objectives import AnyObjective

MODEL = "model"
"""The folder of the best step's model, below the run's."""
LAST_MODEL = "last"
"""The folder of the last step's model, below the run's, where it is kept and not the best."""
HISTORY = "history.json"
"""What happened at which step, in the run's folder."""
FAILURE = "failure.json"
"""Why a run ended without a model, in its folder, until it is begun again."""
TIMINGS = "timings.json"
"""What it took, beside the history: the same run gives the same history, but other timings."""
Judge = Callable[[str, str], bool]
"""Whether an answer, as generated, is right for a target. It is picklable."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train: from what, on what, into which folder. `inputs` are the digests of what it reads.

    `shards` are those of the training split in the folder `features`; `validation` those of the folder `examples`.
    """

    stage: str
    variant: str
    seed: int
    model: ModelSource
    objective: AnyObjective
    features: str
    shards: Sequence[Shard]
    examples: str
    validation: Sequence[Shard]
    target: str
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """What the run is called in progress lines and errors."""
        return f"{self.variant}/{self.seed}"

    def config(self, training: LoopConfig) -> dict[str, Any]:
        """The slice of the config that the run's outcome depends on."""
        return {
            "variant": self.variant,
            "seed": self.seed,
            "model": self.model.config.model_dump(mode="json"),
            "objective": self.objective.model_dump(mode="json"),
            "training": training.loop,
        }

    def digest(self, training: LoopConfig) -> str:
        """By what a finished run is recognised."""
        origin = [self.model.folder, self.model.tokenizer_folder, self.model.seed]
        shards = [[shard.name, shard.rows] for shard in (*self.shards, *self.validation)]
        return digest(self.stage, self.config(training), dict(self.inputs), origin, shards)


def trained(store: Store, run: Run, training: LoopConfig) -> tuple[str, Manifest]:
    """The folder and the manifest of a finished run; its model is in `MODEL` below the folder.

    Raises:
        StageError: it is not finished; the message says which stage to run.
    """
    folder = store.find_folder(run.target, run.digest(training))
    manifest = store.manifest(folder) if folder else None
    if folder is None or manifest is None:
        raise StageError(f"{store.path(run.target)} is not complete for this config; run the stage {run.stage!r} first")
    return folder, manifest


@dataclass(frozen=True)
class Failure:
    """Why a run ended without a model: at which step it was last seen, at its how manieth attempt, and when (UTC)."""

    run: str
    error: str
    step: int
    attempts: int
    time: str


def failure(store: Store, run: Run, training: LoopConfig) -> Failure | None:
    """Why the run has no model; None where it has one, or is still to be trained."""
    folder = store.find_folder(run.target, run.digest(training))
    said = store.json_if_there(f"{folder}/{FAILURE}") if folder is not None and store.manifest(folder) is None else None
    return Failure(**said) if said else None


@dataclass(frozen=True)
class Claimed:
    """A run with its digest and the folder that belongs to it."""

    run: Run
    digest: str
    folder: str


@dataclass(frozen=True)
class Queue:
    """Runs to train one after the other, and how; small and picklable, so that every worker gets it whole."""

    store: Store
    stage: str
    items: Sequence[Claimed]
    training: LoopConfig
    device: str
    judge: Judge

    @classmethod
    def of(cls, store: Store, stage: str, runs: Sequence[Run], training: LoopConfig, device: str, judge: Judge) -> "Queue":
        """The queue of these runs, with a folder claimed for each."""
        digests = [run.digest(training) for run in runs]
        items = [Claimed(run, key, store.folder_for(run.target, key)) for run, key in zip(runs, digests, strict=True)]
        return cls(store, stage, items, training, device, judge)

    @property
    def section(self) -> str:
        """The section of the config that says how its runs are trained."""
        return "teach" if self.stage == "teach" else "training"

    def todo(self) -> list[Claimed]:
        """The runs without a manifest."""
        return [item for item in self.items if self.store.manifest(item.folder) is None]

    def check(self, todo: Sequence[Claimed]) -> None:
        """Refuse, before anything is started, to train on nothing. `todo` are the runs that are to be trained.

        Raises:
            StageError: the features of a run are not complete, none of their rows teaches anything, or its objective needs
                rationales and there is none.
        """
        for folder, run in {item.run.features: item.run for item in todo}.items():
            features = self.store.manifest(folder)
            where = self.store.path(folder)
            if features is None:
                raise StageError(f"{where} is not complete; run the stage that writes it first")
            if features.rows == sum(features.errors.values()) + features.counts.get("teaches_nothing", 0):
                raise StageError(
                    f"{where}: none of its {features.rows} rows has anything to teach; expected rows with a target, or with an"
                    " llm_label where training.answers is llm. For a corpus without labels set training.answers = teacher (or"
                    " llm), and leave teach out. An answer that the teacher wrote and did not end teaches nothing either: raise"
                    " teacher.max_generated_tokens"
                )
            if run.objective.needs_rationales:
                self._check_rationales(run, features.inputs)

    def _check_rationales(self, run: Run, sources: Iterable[str]) -> None:
        """Refuse rationales that are all empty, by what the shards of their folders counted."""
        for source in sources:
            if not any(_has_rationale(self.store.read_notes(f"{source}/{shard.file}")) for shard in run.shards):
                raise StageError(
                    f"variant {run.variant!r} learns rationales, but in {self.store.path(source)} every row of train has an empty"
                    " one: it would learn the label alone. Give it another source, a corpus with rationales (llm_rationale in its"
                    " records, or task.llm), rationales.roles that its texts have, or the objective label_only"
                )


def _has_rationale(counts: Mapping[str, int]) -> bool:
    """Whether a row of a shard has one, by what was counted there."""
    without = sum(n for key, n in counts.items() if key == "empty_rationale" or key.startswith("error."))
    return counts["rows"] > without
