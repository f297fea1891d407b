"""Answers of a small T5 that learns six questions by heart, so that every answer is known beforehand."""

import dataclasses
import math
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


def recipe(student: ModelSource, task: TaskConfig = TOY, prefix: str = "", **config: Any) -> Answer:
    return Answer(EvaluationConfig(**config), task, student, prefix, variant="words", seed=7, device="cpu", threads=1)


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


# --- ranked answers -------------------------------------------------------------------------------------------------------


def ranked(student: ModelSource, row: Example, **config: Any) -> Prediction:
    (result,) = recipe(student, answer="rank", **config).open()([row], Counter())
    assert isinstance(result, Prediction)
    return result


def test_the_most_probable_entry_of_the_label_set_is_the_answer(student: ModelSource) -> None:
    made = ranked(student, question("is it red", "no", ("no", "yes")))
    assert (made.answer, made.raw, made.status, made.correct) == ("yes", "yes", "ok", False)
    assert made.choice_logprobs[1] > math.log(0.5) > made.choice_logprobs[0]
    assert ranked(student, question("is it red", None, ("no", "yes"))).correct is None


def test_a_ranked_answer_need_not_be_what_would_be_written(student: ModelSource) -> None:
    made = ranked(student, question("is it red", "no", ("no", "( 2 + 2 )")))
    assert (made.answer, made.status) == (max(zip(made.choice_logprobs, made.label_set, strict=True))[1], "ok")
    assert outcome(answered(student, question("is it red", "no", ("no", "( 2 + 2 )")))) == (None, "unparsed", False)


def test_normalised_by_length_a_number_is_the_mean_over_the_tokens_of_its_choice(student: ModelSource) -> None:
    row = question("is it red", "no", ("no", "( 2 + 2 )", "one two three"))
    sums, means = ranked(student, row).choice_logprobs, ranked(student, row, length_normalised=True).choice_logprobs
    family = open_family(load(student, "cpu"), student.config)
    tokens = [len(family.encode_answer(label)) for label in row.label_set]
    assert len(set(tokens)) == 3
    assert means == pytest.approx([total / count for total, count in zip(sums, tokens, strict=True)], rel=1e-6)


def test_a_row_without_a_label_set_cannot_be_ranked(student: ModelSource) -> None:
    rows = [question("is it red"), question("is it red", "yes", ("yes", "no"))]
    error, made = recipe(student, answer="rank").open()(rows, Counter())
    assert (error.reason, made.answer) == ("missing_field", "yes")
    assert "evaluation.answer" in error.detail


def test_a_choice_that_no_answer_may_be_as_long_as_is_an_error_of_its_row(student: ModelSource) -> None:
    row = question("is it red", "yes", ("yes", "one two three four five six and no"))
    assert recipe(student, answer="rank").open()([row], Counter())[0].reason == "too_long"


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("length_normalised", [False, True])
def test_every_family_ranks_and_a_rows_numbers_do_not_depend_on_its_batch(
    student: ModelSource, tmp_path: Path, kind: str, length_normalised: bool
) -> None:
    family = tiny.family(tiny.tiny_models(tmp_path)[kind])
    rows = [row for row in tiny.rows_for(kind) if row.label_set]
    config = {"answer": "rank", "length_normalised": length_normalised}
    together = Answerer(recipe(student, **config), family).answer(rows, Counter())
    alone = [Answerer(recipe(student, **config), family).answer([row], Counter())[0] for row in rows]
    for row, one, other in zip(rows, together, alone, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
        best = max(range(len(row.label_set)), key=lambda place: one.choice_logprobs[place])
        assert one.answer == other.answer == row.label_set[best]


@pytest.mark.parametrize("kind", ["classifier", "pooled", "scorer"])
def test_the_length_of_a_choice_changes_nothing_where_it_is_not_written(student: ModelSource, tmp_path: Path, kind: str) -> None:
    family, rows = tiny.family(tiny.tiny_models(tmp_path)[kind]), tiny.rows_for(kind)
    plain = Answerer(recipe(student, answer="rank"), family).answer(rows, Counter())
    assert Answerer(recipe(student, answer="rank", length_normalised=True), family).answer(rows, Counter()) == plain


def test_a_number_that_is_not_finite_is_an_error_of_its_row(student: ModelSource) -> None:
    family = tiny.family(tiny.tiny_classifier())
    with torch.no_grad():
        family.model.classifier.bias[0] = torch.nan
    (error,) = Answerer(recipe(student, answer="rank"), family).answer(tiny.rows_for("classifier")[:1], Counter())
    assert isinstance(error, RowError)
    assert error.reason == "not_finite"


def test_lengths_of_generated_answers_are_not_normalised() -> None:
    with pytest.raises(ValueError, match="length_normalised is about ranked answers, got answer: generate"):
        EvaluationConfig(length_normalised=True)


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
