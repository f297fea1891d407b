"""A small run directory to train in: rows with a cue word, their rationales, a tokenizer, features."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kd.manifests import Manifest, Shard
from kd.models import ModelConfig, ModelSource
from kd.rows import Example, Features, RationaleRow, RowError
from kd.shards import Claimed, Work, claim, finish, run_shard
from kd.store import Store
from kd.training.config import LoopConfig
from kd.training.engine import TorchEngine
from kd.training.features import Featurise
from kd.training.loop import Trainer
from kd.training.objectives import AnyObjective, LabelOnly, MultiTask
from kd.training.runs import Queue, Run
from kd.training.session import open_run
from kd.training.validation import Score
from tests.tiny import SPEC, example, tiny_source

WORDS = ["river", "bank", "money", "coffee", "cake", "café", "open", "serves"]
SHARD_ROWS = 8
SHORT = LoopConfig(steps=6, batch_rows=8, learning_rate=3e-3, clip_norm=0.5, weight_decay=0.1, warmup_steps=2, log_every_steps=1)


def row(number: int, split: str) -> RationaleRow:
    """A question of four to seven words, the second of which decides the answer; every third row is unlabelled or errored, and of the
    others every fifth has no rationale."""
    words = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 5, 7)] + ["river"] * (number % 4)
    target = ("yes", "no")[WORDS.index(words[1]) % 2]
    plain = example(" ".join(words), ("yes", "no"), target, uid=f"{split}{number}", split=split)
    if split == "train" and number % 3 == 0:
        broken = RowError("too_long", "made so") if number % 2 else None
        plain = replace(plain, target=None, error=broken)
    return rationale_row(plain, words[1] if number % 5 else "")


def rationale_row(plain: Example, text: str) -> RationaleRow:
    """A row that has been attributed and rationalised, as far as training looks at it."""
    had = {name: getattr(plain, name) for name in Example.__dataclass_fields__}
    return RationaleRow(**had, **_ATTRIBUTED, rationale_text=text)


def write_corpus(store: Store, train_shards: int = 3) -> tuple[list[Shard], list[Shard]]:
    """Train and validation shards of examples and of rationale rows."""
    train = [Shard(f"train-{index}", "train", SHARD_ROWS) for index in range(train_shards)]
    validation = [Shard("validation-0", "validation", SHARD_ROWS)]
    for position, shard in enumerate([*train, *validation]):
        rows = [row(position * SHARD_ROWS + offset, shard.split) for offset in range(shard.rows)]
        store.publish_rows(f"rationales/words/{shard.file}", rows, RationaleRow, {})
        store.publish_rows(f"examples/{shard.file}", [as_example(each) for each in rows], Example, {})
    return train, validation


def as_example(rationale: RationaleRow) -> Example:
    return Example(**{name: getattr(rationale, name) for name in Example.__dataclass_fields__})


def featurise(store: Store, recipe: Featurise, shards: Sequence[Shard], folder: str) -> Manifest:
    """The features of the shards, by a plain loop."""
    work = Work(
        title="features",
        recipe=recipe,
        source="rationales/words",
        target=folder,
        reads=RationaleRow,
        writes=Features,
        shards=shards,
        config=recipe.objective.model_dump(),
        inputs={},
        max_error_frac=1.0,
        max_error_key="training.max_error_frac",
    )
    claimed = claim(store, work)
    if isinstance(claimed, Manifest):
        return claimed
    assert isinstance(claimed, Claimed)
    apply = recipe.open()
    for shard in claimed.todo:
        run_shard(store, claimed, shard, apply)
    return finish(store, claimed, 1.0, "cpu")


def tiny_queue(
    folder: Path,
    training: LoopConfig,
    dropout: float = 0.0,
    seeds: Sequence[int] = (0,),
    stage: str = "train",
    student: Path | None = None,
    store: Store | None = None,
) -> Queue:
    """A queue of tiny students, label only and with rationales, over a new run directory: T5s, or the model in a folder.

    The run directory is `folder`, unless it is a store that is given.
    """
    source = tiny_source(folder, SPEC.model_copy(update={"dropout": dropout}), max_input_tokens=48, max_answer_tokens=8)
    if student:
        source = ModelSource(ModelConfig(name=str(student), max_input_tokens=48, max_answer_tokens=8))
    store = store or Store.at(str(folder))
    train, validation = write_corpus(store)
    runs = []
    for name, objective in VARIANTS.items():
        features = f"students/{name}/features"
        manifest = featurise(store, Featurise(objective, source), train, features)
        for seed in seeds:
            run = Run(
                stage=stage,
                variant=name,
                seed=seed,
                model=replace(source, seed=seed),
                objective=objective,
                features=features,
                shards=train,
                examples="examples",
                validation=validation,
                target=f"students/{name}/{seed}",
                inputs={"features": manifest.digest},
            )
            runs.append(run)
    return Queue.of(store, stage, runs, training, "cpu", judge)


@contextmanager
def trainer(queue: Queue, item: int = 0) -> Iterator[Trainer]:
    """One of the queue's runs, ready to start in this process with plain torch."""
    run = queue.items[item].run
    with TemporaryDirectory() as folder:
        opened = open_run(queue, run, Path(folder), rank=0, world=1)
        yield opened.trainer(TorchEngine(opened.student.model, queue.training, "cpu"), queue, run, Path(folder))


def judge(answer: str, target: str) -> bool:
    return answer == target


def history(queue: Queue, item: int = 0) -> list[dict[str, Any]]:
    """What happened in one run of a finished queue."""
    entries: list[dict[str, Any]] = queue.store.read_json(f"{queue.items[item].folder}/history.json")["history"]
    return entries


def score_of(entry: Mapping[str, Any]) -> Score:
    """What a validated step of a history says."""
    names = ("accuracy", "loss", "parse_rate", "truncation_rate")
    return Score(*(entry[f"validation_{name}"] for name in names))


def figures(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    """Every step's losses and gradient norm; a loss that nothing had a part in as -1."""
    return [-1.0 if value is None else value for entry in entries for value in (*entry["loss"].values(), entry["gradient_norm"])]


VARIANTS: Mapping[str, AnyObjective] = {"words": MultiTask(), "label": LabelOnly()}

_ATTRIBUTED: dict[str, Any] = {
    "model": "m@1",
    "method": "saliency",
    "explained": "gold",
    "explained_answer": None,
    "generated": None,
    "generated_cut": None,
    "ranked": None,
    "choice_logprobs": [],
    "target_logprob": None,
    "tokens": [],
    "token_segment": [],
    "token_start": [],
    "token_end": [],
    "scores": [],
    "completeness_gap": None,
    "truncated_tokens": 0,
    "fold": 0,
    "word_segment": [],
    "word_start": [],
    "word_end": [],
    "importance": [],
    "rationale": [],
    "source": "words",
    "provenance": "p",
}
