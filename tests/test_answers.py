"""Answers of a small T5 that learns six questions by heart, so that every answer is known beforehand."""

import dataclasses
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kd.evaluation.answers import Answer, Answerer, EvaluationConfig
from kd.families.base import Family
from kd.families.opening import open_family
from kd.models import ModelConfig, ModelSource, load, save
from kd.rows import Example, Prediction, RowError, Segment
from kd.shards import count
from kd.specs import T5Spec
from kd.store import Store
from kd.tasks.base import TaskConfig
from kd.tasks.svamp import Svamp
from kd.vocabulary import train_tokenizer
from tests import tiny

LEARNT = {
    "is it red": "yes",
    "is it blue": "no",
    "is it late": "one two three four five six",
    "two and two": "( 2 + 2 )",
    "say: is it red": "Red",
    "say: is it blue": "( 2 +",
}
SPEC = T5Spec(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=100)


class Toy(TaskConfig):
    """A task of no corpus: only how answers are judged matters here."""

    type: str = "toy"
    path: str = "nowhere"

    def parse(self, record: Any) -> Any:
        raise NotImplementedError

    def needs(self) -> Any:
        raise NotImplementedError


TOY = Toy.model_validate({"files": {"test": "test"}})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A run directory with the trained model."""
    store = Store.at(str(tmp_path_factory.mktemp("run")))
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


def recipe(student: ModelSource, task: TaskConfig = TOY, prefix: str = "", **config: int) -> Answer:
    return Answer(EvaluationConfig(**config), task, student, prefix, variant="words", seed=7, device="cpu", threads=1)  # type: ignore[arg-type]


def answered(student: ModelSource, row: Example, task: TaskConfig = TOY, prefix: str = "") -> Prediction:
    (result,) = recipe(student, task, prefix).open()([row], Counter())
    assert isinstance(result, Prediction)
    return result


def outcome(made: Prediction) -> tuple[str | None, str, bool | None]:
    return made.answer, made.status, made.correct


# --- what becomes of an answer --------------------------------------------------------------------------------------------


def test_an_answer_is_right_or_wrong_by_its_target(student: ModelSource) -> None:
    assert outcome(answered(student, question("is it red", "yes", ("yes", "no")))) == ("yes", "ok", True)
    assert outcome(answered(student, question("is it blue", "yes", ("yes", "no")))) == ("no", "ok", False)


def test_an_answer_outside_the_label_set_is_unparsed_and_what_was_written_is_kept(student: ModelSource) -> None:
    made = answered(student, question("is it red", "maybe", ("maybe", "never")))
    assert outcome(made) == (None, "unparsed", False)
    assert made.raw == "yes"


def test_an_answer_without_its_end_is_truncated(student: ModelSource) -> None:
    made = answered(student, question("is it late", "one two three four five six"))
    assert outcome(made) == (None, "truncated", False)
    assert made.raw == "one two three four five six"


def test_an_answer_is_given_in_the_spelling_of_the_label(student: ModelSource) -> None:
    assert outcome(answered(student, question("say: is it red", "red", ("red", "blue")))) == ("red", "ok", True)


def test_where_only_the_very_text_is_right_another_spelling_of_the_label_is_unparsed(student: ModelSource) -> None:
    exact = TOY.model_copy(update={"match": "exact"})
    assert outcome(answered(student, question("say: is it red", "red", ("red", "blue")), exact)) == (None, "unparsed", False)
    assert outcome(answered(student, question("is it red", "yes", ("yes", "no")), exact)) == ("yes", "ok", True)
    assert outcome(answered(student, question("say: is it red", "red"), exact)) == ("Red", "ok", False)


def test_a_limit_of_generated_tokens_holds_for_answers_and_one_of_targets_does_not(student: ModelSource) -> None:
    """The model knows this answer of seven tokens, and its own limit of answers is six."""
    row = question("is it late", "one two three four five six")
    for limit, found in ((7, (LEARNT["is it late"], "ok", True)), (3, (None, "truncated", False))):
        config = student.config.model_copy(update={"max_generated_tokens": limit})
        assert outcome(answered(dataclasses.replace(student, config=config), row)) == found


def test_free_text_is_read_as_it_is(student: ModelSource) -> None:
    assert outcome(answered(student, question("say: is it red", "red."))) == ("Red", "ok", True)


def test_without_a_target_nothing_is_right_or_wrong(student: ModelSource) -> None:
    assert outcome(answered(student, question("is it red", None, ("yes", "no")))) == ("yes", "ok", None)
    assert outcome(answered(student, question("is it red", None, ("maybe",)))) == (None, "unparsed", None)


def test_the_prefix_is_what_the_model_is_asked_behind(student: ModelSource) -> None:
    assert answered(student, question("is it red"), prefix="say: ").answer == "Red"
    assert answered(student, question("is it red")).answer == "yes"


def test_the_prefix_does_not_become_part_of_the_row(student: ModelSource) -> None:
    row = question("is it red")
    made = answered(student, row, prefix="say: ")
    assert all(getattr(made, field.name) == getattr(row, field.name) for field in dataclasses.fields(Example))


def test_an_equation_is_right_by_its_value_and_half_an_equation_is_unparsed(student: ModelSource) -> None:
    svamp = Svamp(path="nowhere")
    assert outcome(answered(student, question("two and two", "8 / 2"), svamp)) == ("( 2 + 2 )", "ok", True)
    assert outcome(answered(student, question("is it blue", "8 / 2"), svamp, "say: ")) == (None, "unparsed", False)


# --- the stage ------------------------------------------------------------------------------------------------------------


def test_a_prediction_says_which_model_made_it(student: ModelSource) -> None:
    made = answered(student, question("is it red"))
    assert (made.variant, made.seed) == ("words", 7)
    assert made.student.startswith("model@")
    assert made.choice_logprobs == []


def test_a_row_that_cannot_be_read_is_an_error_in_its_place(student: ModelSource) -> None:
    long = dataclasses.replace(question("x"), segments=[Segment("choice", "is it red " * 10)])
    rows = [question("is it red"), long, question("is it blue"), question("")]
    results = recipe(student).open()(rows, Counter())
    assert [result.reason if isinstance(result, RowError) else result.answer for result in results] == [
        "yes",
        "too_long",
        "no",
        "empty_text",
    ]


def test_a_label_that_a_classifier_does_not_have_is_an_error_of_its_row_alone(student: ModelSource) -> None:
    rows = tiny.rows_for("classifier")[:2]
    rows.append(dataclasses.replace(rows[0], label_set=["yes", "no", "perhaps"]))
    results = Answerer(recipe(student), tiny.family(tiny.tiny_classifier())).answer(rows, Counter())
    assert [result.reason if isinstance(result, RowError) else result.status for result in results] == [
        "ok",
        "ok",
        "unknown_label",
    ]


def test_a_label_longer_than_an_answer_may_be_is_no_error(student: ModelSource) -> None:
    made = answered(student, question("is it red", "yes", ("yes", "one two three four five six and no")))
    assert outcome(made) == ("yes", "ok", True)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_answers_come_in_the_order_of_the_rows_however_they_are_batched(student: ModelSource, batch_tokens: int) -> None:
    questions = ["is it red", "two and two", "is it late", "is it blue", "is it red and is it red"]
    results = recipe(student, batch_tokens=batch_tokens).open()([question(text) for text in questions], Counter())
    alone = [answered(student, question(text)) for text in questions]
    assert results == alone
    assert [result.raw for result in results[:4]] == [LEARNT[text] for text in questions[:4]]


def test_what_was_cut_off_the_input_is_counted(student: ModelSource) -> None:
    made = answered(student, question(" ".join(["is it red"] * 5)))
    assert made.truncated_tokens == 15 + 1 - 12


def test_no_rows_have_no_predictions(student: ModelSource) -> None:
    assert recipe(student).open()([], Counter()) == []


def test_the_recipe_can_be_sent_to_a_worker(student: ModelSource) -> None:
    row = question("is it red", "yes", ("yes", "no"))
    (made,) = pickle.loads(pickle.dumps(recipe(student))).open()([row], Counter())
    assert count([made]) == {"rows": 1, "ok": 1, "correct": 1}
