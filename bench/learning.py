"""What the benchmark on training shares: rows with rationales, a model, a run directory with features, and queues of one run."""

import itertools
import operator
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.setting import T5_SMALL
from bench.texts import questions
from kd.corpus import find_splits
from kd.examples import as_example
from kd.loading import save
from kd.manifests import Manifest, Shard
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Example, Features
from kd.specs import T5Spec
from kd.store import Store
from kd.tasks.esnli import ESNLI
from kd.tasks.planted import DISTRACTORS
from kd.training.config import LoopConfig
from kd.training.features import Featurise
from kd.training.objectives import MultiTask, Target
from kd.training.runs import HISTORY, TIMINGS, Queue, Run
from kd.vocabulary import train_tokenizer

TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 1200}
T5_TINY = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_heads": 4, "vocab_size": 32128}
SIZES = {"t5-small": T5_SMALL, "t5-tiny": T5_TINY, "toy": TINY}
MAX_INPUT_TOKENS, MAX_ANSWER_TOKENS = 1024, 256
"""The baseline's limits; nothing here comes near them."""
MICRO_BATCH_TOKENS = 2048
"""What the config's own words recommend for a CPU."""
PAIR_WORDS = {12: 10, 14: 10, 16: 10, 18: 10, 19: 10, 21: 10, 23: 10, 26: 10, 31: 10, 42: 10}
"""Words of premise and hypothesis in e-SNLI: the middles of ten bins of a tenth of the rows each."""
QUESTION_RATIONALE_WORDS = {19: 2, 21: 2, 23: 2, 25: 2, 28: 1, 34: 1}
PAIR_RATIONALE_WORDS = {6: 2, 8: 2, 10: 2, 12: 2, 15: 1, 21: 1}
"""Words of an LLM's rationale in CommonsenseQA and in e-SNLI."""


class LlmTaught(MultiTask):
    """Label and rationale as the product's objective asks for them, the rationale being the LLM's, straight from the example."""

    def targets(self, row: Example) -> list[Target]:
        assert row.target is not None
        assert row.llm_rationale is not None
        return [
            Target(0, self.label_prefix, row.target),
            Target(1, self.rationale_prefix, row.llm_rationale, may_be_cut=True),
        ]


def taught_rows(data: Path | None, rows: int) -> list[Example]:
    """Questions and pairs of sentences in turn, each with a label and a rationale.

    `data` is CommonsenseQA's folder, beside which e-SNLI's lies; without it both are made up, of the same lengths.
    """
    if data is None:
        asked = [_with_rationale(row, number, QUESTION_RATIONALE_WORDS) for number, row in enumerate(questions(None, rows))]
        paired = [_made_up_pair(number) for number in range(rows)]
    else:
        asked, paired = questions(data, rows), pairs(data.parent / "esnli", rows)
    mixed = [row for both in zip(asked, paired, strict=False) for row in both]
    usable = [row for row in mixed if row.error is None and row.target and row.llm_rationale]
    assert len(usable) >= rows, f"expected {rows} rows with label and rationale, got {len(usable)}"
    return usable[:rows]


def pairs(folder: Path, rows: int) -> list[Example]:
    """The first rows of e-SNLI that are there to be learned."""
    task = ESNLI(path=str(folder))
    return [as_example(task, "train", record) for record in itertools.islice(find_splits(task)["train"].all_records(), rows)]


def _made_up_pair(number: int) -> Example:
    plain = questions(None, number + 1)[number]
    draw = random.Random(-1 - number)
    segments = [replace(plain.segments[0], text=_words(draw, PAIR_WORDS))]
    labels = ["entailment", "neutral", "contradiction"]
    row = replace(plain, uid=f"made-up-pair/{number}", segments=segments, label_set=labels, target=draw.choice(labels))
    return _with_rationale(row, -1 - number, PAIR_RATIONALE_WORDS)


def _with_rationale(row: Example, seed: int, lengths: Mapping[int, int]) -> Example:
    return replace(row, llm_rationale=_words(random.Random(seed), lengths))


def _words(draw: random.Random, lengths: Mapping[int, int]) -> str:
    (length,) = draw.choices(list(lengths), list(lengths.values()))
    return " ".join(draw.choices(DISTRACTORS, k=length))


@dataclass(frozen=True)
class Classroom:
    """A run directory with the features of some rows, and the model that is to learn them."""

    store: Store
    source: ModelSource
    shard: Shard
    rows: Sequence[Features]

    @classmethod
    def furnished(cls, folder: Path, rows: Sequence[Example], sizes: Mapping[str, int]) -> "Classroom":
        """Write model and features of the rows below a folder."""
        torch.manual_seed(0)
        make_model(rows, folder / "model", sizes)
        limits = {"max_input_tokens": MAX_INPUT_TOKENS, "max_answer_tokens": MAX_ANSWER_TOKENS}
        source = ModelSource(ModelConfig(name=str(folder / "model"), **limits))
        found = Featurise(LlmTaught(), source).open()(rows, Counter())
        features = [row for row in found if isinstance(row, Features)]
        assert len(features) == len(rows), "a row of the benchmark has an error"
        store, shard = Store.at(str(folder / "run")), Shard("train-0", "train", len(features))
        store.publish_rows(f"features/{shard.file}", features, Features, {})
        store.publish_manifest("features", Manifest(stage="features", digest="d", config={}, inputs={}, rows=len(features)))
        return cls(store, source, shard, features)

    def queue(self, name: str, training: LoopConfig) -> Queue:
        """A queue of one run, which is a stage of its own."""
        run = Run(
            stage=name,
            variant="bench",
            seed=0,
            model=self.source,
            objective=MultiTask(),
            features="features",
            shards=[self.shard],
            examples="examples",
            validation=[],
            target=f"students/{name}",
            inputs={},
        )
        return Queue.of(self.store, name, [run], training, "cpu", operator.eq)

    def timings(self, queue: Queue) -> list[dict[str, Any]]:
        """The entries of a finished queue's run, with what their steps took by the worker's own clock."""
        folder = queue.items[0].folder
        history, timings = self.store.read_json(f"{folder}/{HISTORY}"), self.store.read_json(f"{folder}/{TIMINGS}")
        return [entry | timing for entry, timing in zip(history["history"], timings["timings"], strict=True)]


def loop_config(steps: int, batch_rows: int, threads: int, workers: int = 1) -> LoopConfig:
    """The product's loop by the baseline's recipe: nothing but steps, every one in the timings."""
    return LoopConfig(
        steps=steps,
        batch_rows=batch_rows,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        eval_rows=0,
        eval_every_steps=steps,
        save_every_steps=0,
        log_every_steps=1,
        num_workers=workers,
        threads_per_worker=threads,
    )


def make_model(rows: Sequence[Example], folder: Path, sizes: Mapping[str, int]) -> None:
    """A T5 of random weights with a tokenizer trained on the rows, as a folder that plain transformers loads."""
    from transformers import T5Config, T5ForConditionalGeneration

    texts = [text for row in rows for text in ("".join(part.text for part in row.segments), row.target, row.llm_rationale)]
    prefixes = [MultiTask().label_prefix, MultiTask().rationale_prefix]
    spec = T5Spec(vocab_size=min(8000, sizes["vocab_size"]), tokenizer="unigram")
    tokenizer = train_tokenizer(spec, [*(text for text in texts if text), *prefixes])
    config = T5Config(**{"dropout_rate": 0.1} | dict(sizes), decoder_start_token_id=tokenizer.pad_token_id)
    save(Loaded(T5ForConditionalGeneration(config), tokenizer, "t5"), folder)


def steady_rate(timings: Sequence[Mapping[str, Any]], warm: int) -> float:
    """Real tokens per second of the steps behind the first `warm` ones."""
    steady = timings[warm:]
    return float(sum(step["tokens"] for step in steady) / sum(step["seconds"] for step in steady))


def quantiles(lengths: Sequence[int]) -> str:
    """Median, ninth decile and maximum, in words for a record."""
    return f"{statistics.median(lengths):g}, {statistics.quantiles(lengths, n=10)[8]:g}, {max(lengths)}"
