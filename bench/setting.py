"""What the benchmarks on questions share: the command line, the model, and rows that it can answer."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.record import Record
from bench.texts import questions, sentences
from kd.attribution.engine import AttributionConfig, Engine
from kd.errors import RowFault
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import load, save
from kd.models import Loaded, ModelConfig, ModelSource
from kd.rows import Example
from kd.specs import T5Spec
from kd.vocabulary import train_tokenizer

T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128}
LIMITS = ModelConfig(name="t5-small", max_input_tokens=256, max_answer_tokens=8)
SHARD_ROWS = 4096


def arguments(description: str | None, rows: int = 512) -> argparse.Namespace:
    """The command line of the benchmarks on questions; `rows` unless told otherwise."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder of CommonsenseQA as JSON lines; without it rows are made up")
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4096, help="padded tokens at once")
    parser.add_argument("--inseq", type=Path, help="a Python that has inseq; without it that comparison fails")
    parser.add_argument("--out", type=Path, help="file to write the lines to")
    return parser.parse_args()


def describe(record: Record, given: argparse.Namespace, rows: int) -> None:
    """The machine, the text and the sizes."""
    record.machine(text="CommonsenseQA" if given.data else "made up", rows=rows, budget_tokens=given.budget)


def end(record: Record, given: argparse.Namespace) -> None:
    """Leave with the bars' status; a note says where they were not judged on what they are about."""
    if given.data is None:
        print("the text is made up, the bars are about real text: give make BENCH_DATA=FOLDER", file=sys.stderr)
    record.end()


def model_and_rows(folder: Path, data: Path | None) -> list[Example]:
    """A model in a folder, and a shard of rows that it can answer."""
    torch.manual_seed(0)
    candidates = questions(data, 2 * SHARD_ROWS)
    make_model(candidates, folder)
    return fitting(candidates, open_model(folder, device="meta"))[:SHARD_ROWS]


def fitting(rows: Sequence[Example], family: Family) -> list[Example]:
    """The rows whose options all fit the limit of an answer; the others would be rows with an error."""

    def fits(row: Example) -> bool:
        try:
            return bool([family.encode_answer(option) for option in row.label_set])
        except RowFault:
            return False

    return [row for row in rows if fits(row)]


def make_model(rows: Sequence[Example], folder: Path) -> None:
    """A T5 of random weights with a tokenizer trained on the rows, as a folder that plain transformers loads."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(T5Spec(vocab_size=8000, tokenizer="unigram"), sentences(rows))
    model = T5ForConditionalGeneration(T5Config(**T5_SMALL, decoder_start_token_id=tokenizer.pad_token_id, dropout_rate=0.1))
    save(Loaded(model, tokenizer, "t5-small"), folder)


def open_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> Family:
    """The model in a folder, on a device."""
    config = LIMITS.model_copy(update={"name": str(folder), "dtype": dtype})
    return open_family(load(ModelSource(config), device), config)


def engine(family: Family, budget: int, answers: bool) -> Engine:
    """The engine over a model, with saliency."""
    return Engine(AttributionConfig(answers=answers, batch_tokens=budget), family)
