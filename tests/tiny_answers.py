"""A small T5 that learns six questions by heart, so that every answer is known beforehand, and how it is asked."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from kd.evaluation.answers import Answer, EvaluationConfig
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import load, save
from kd.models import ModelConfig, ModelSource
from kd.rows import Example, Prediction, Segment
from kd.specs import T5Spec
from kd.store import Store
from kd.tasks.base import Files, TaskConfig
from kd.tasks.columns import Columns, Part
from kd.vocabulary import train_tokenizer

LEARNT = {
    "is it red": "yes",
    "is it blue": "no",
    "is it late": "one two three four five six",
    "two and two": "( 2 + 2 )",
    "say: is it red": "Red",
    "say: is it blue": "( 2 +",
}
SPEC = T5Spec(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=100)
TOY = Columns(name="toy", path="nowhere", files=Files(test="test"), prompt=[Part(column="question", role="question")])
"""A task of no corpus: only how answers are judged matters here."""


def learnt(folder: Path) -> ModelSource:
    """A run directory with the trained model."""
    store = Store.at(str(folder))
    tokenizer = train_tokenizer(SPEC, [*LEARNT, *LEARNT.values()])
    tokenizer.save_pretrained(store.path("tokenizer"))
    config = ModelConfig(spec=SPEC, max_answer_tokens=6, max_input_tokens=12)
    loaded = load(ModelSource(config, store, tokenizer_folder="tokenizer", seed=1), "cpu")
    family = open_family(loaded, config.model_copy(update={"max_answer_tokens": 12}))
    learn(family)
    save(loaded, Path(store.path("model")))
    return ModelSource(config, store, "model")


def learn(family: Family) -> None:
    inputs = [family.encode([Segment("question", question)]).ids for question in LEARNT]
    targets = [family.encode_answer(answer) for answer in LEARNT.values()]
    optimizer = torch.optim.Adam(family.model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = family.sequence_nll(family.model, inputs, targets).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < 0.69, "below ln 2 nats in all, every token of every answer is the likeliest one"


def question(text: str, target: str | None = None, label_set: tuple[str, ...] = ()) -> Example:
    return Example(
        uid=f"test/{text}",
        error=None,
        task="toy",
        split="test",
        segments=[Segment("question", text)],
        target=target,
        label_set=list(label_set),
        evidence=[],
        llm_rationale=None,
        llm_label=None,
    )


def recipe(student: ModelSource, task: TaskConfig = TOY, prefix: str = "", **config: Any) -> Answer:
    return Answer(EvaluationConfig(**config), task, student, prefix, variant="words", seed=7, device="cpu", threads=1)


def answered(student: ModelSource, row: Example, task: TaskConfig = TOY, prefix: str = "") -> Prediction:
    (result,) = recipe(student, task, prefix).open()([row], Counter())
    assert isinstance(result, Prediction)
    return result


def outcome(made: Prediction) -> tuple[str | None, str, bool | None]:
    return made.answer, made.status, made.correct
