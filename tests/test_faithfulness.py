"""Faithfulness of a linear teacher, whose probability of the answer is the sum of the weights of the words that it reads."""

import dataclasses
import itertools
import math
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.arrow import from_table, to_table
from kd.audit_rows import Erasure
from kd.evaluation.erasing import Eraser
from kd.evaluation.faithfulness import Faithfulness, FaithfulnessConfig, Teacher, measure
from kd.evaluation.faithfulness_sums import FaithfulnessSums, faithfulness_sums
from kd.evaluation.metric_names import METRICS
from kd.evaluation.metrics import About
from kd.evaluation.sums import Tally
from kd.families.opening import open_family
from kd.loading import load
from kd.rationales import RationalesConfig
from kd.rows import Example, RationaleRow, RowError, Segment
from tests import tiny
from tests.tiny_erasing import BASE, FRACTIONS, WEIGHTS, eraser, linear, measured, rationalised

pytestmark = pytest.mark.usefixtures("one_thread")

ABOUT = About("rationales", "audit", "attribution", None, "toy", "train")


def figures(rows: Sequence[RationaleRow], by: Eraser | None = None) -> dict[str, float | None]:
    made = measure(rows, by or eraser(), linear, Counter())
    assert all(isinstance(row, Erasure) for row in made)
    return {row.metric: row.value for row in faithfulness_sums(made).metrics(ABOUT)}  # type: ignore[arg-type]


# --- the linear teacher -------------------------------------------------------------------------------------------------


def test_the_fall_is_the_weight_of_the_words_that_are_gone() -> None:
    falls = measured(rationalised())
    expected = {("comprehensiveness", 0.25): 0.4, ("comprehensiveness", 0.5): 0.6, ("sufficiency", 0.25): 0.35}
    for (name, frac), fall in {**expected, ("sufficiency", 0.5): 0.15}.items():
        assert falls[name, "importance", frac] == pytest.approx(fall)
    assert falls["comprehensiveness", "rationale", 0.25] == pytest.approx(0.4)
    assert falls["sufficiency", "rationale", 0.25] == pytest.approx(0.35)


def test_figures_are_means_over_fractions_and_rows() -> None:
    rows = [rationalised(), rationalised("alpha beta gamma delta? alpha", uid="r2")]
    found = figures(rows)
    assert found["comprehensiveness:importance"] == pytest.approx(((0.4 + 0.6) / 2 + (0.8 + 1.0) / 2) / 2)
    assert found["sufficiency:importance"] == pytest.approx((0.35 + 0.15) / 2)
    assert found["comprehensiveness:importance@0.25"] == pytest.approx((0.4 + 0.8) / 2)
    assert found["comprehensiveness:rationale"] == pytest.approx((0.4 + 0.8) / 2)
    assert found["answer_probability"] == pytest.approx(BASE + 0.01 + 0.75 + 0.2)
    assert not [name for name in found if name.startswith("comprehensiveness:rationale@")]


@settings(deadline=None)
@given(st.permutations(list(WEIGHTS)[:4]), st.integers(1, 4))
def test_for_a_linear_teacher_the_two_measures_share_out_the_weight_of_all_words(order: list[str], k: int) -> None:
    falls = measured(rationalised(" ".join(order), k))
    for (name, taken, frac), fall in falls.items():
        other = {"comprehensiveness": "sufficiency", "sufficiency": "comprehensiveness"}[name]
        assert fall + falls[other, taken, frac] == pytest.approx(0.75)


def test_random_words_carry_their_share_of_the_weight_on_average() -> None:
    found = figures([rationalised(uid=f"r{number}") for number in range(400)])
    assert found["comprehensiveness:random@0.25"] == pytest.approx(0.75 / 4, abs=0.02)
    assert found["comprehensiveness:random@0.5"] == pytest.approx(0.75 / 2, abs=0.02)
    assert found["comprehensiveness:rationale_random"] == pytest.approx(0.75 / 4, abs=0.02)
    assert found["comprehensiveness_gain:random"] == pytest.approx(0.5 - 0.75 * 3 / 8, abs=0.02)
    assert found["sufficiency_gain:rationale_random"] == pytest.approx(0.75 * 3 / 4 - 0.35, abs=0.02)


def test_the_best_and_the_worst_words_have_gains_of_opposite_sign() -> None:
    best = [rationalised(uid=str(number)) for number in range(50)]
    upside_down = {word: 1 / weight for word, weight in WEIGHTS.items()}
    worst = [rationalised(uid=str(number), scores=upside_down) for number in range(50)]
    for name in ("comprehensiveness_gain:random", "sufficiency_gain:random", "comprehensiveness_gain:rationale_random"):
        good, bad = figures(best)[name], figures(worst)[name]
        assert good is not None
        assert bad is not None
        assert good > 0.05
        assert bad < -0.05


def test_lexical_words_are_those_that_stand_in_question_and_options() -> None:
    falls = measured(rationalised("alpha beta bank delta"))
    assert falls["comprehensiveness", "lexical", 0.25] == pytest.approx(0.01)
    assert falls["sufficiency", "lexical", 0.25] == pytest.approx(0.65)


def test_the_same_words_come_out_with_other_rows_around_and_other_ones_with_another_seed() -> None:
    rows = [rationalised(uid=f"r{number}") for number in range(100)]
    together = measure(rows, eraser(), linear, Counter())
    assert together == [measure([row], eraser(), linear, Counter())[0] for row in rows]
    assert measure(rows, eraser(seed=1), linear, Counter()) != together


def test_a_row_is_asked_about_as_often_as_its_config_says_at_most() -> None:
    config, tally = FaithfulnessConfig(fractions=FRACTIONS), Counter[str]()
    measure([rationalised(" ".join(f"word{n}" for n in range(40)) + " alpha beta", k=2)], eraser(), linear, tally)
    assert config.texts(by_importance=False) == 5
    assert 5 < tally["asked"] <= config.texts(by_importance=True) == 23


def test_each_text_is_asked_about_once() -> None:
    tally: Counter[str] = Counter()
    measure([rationalised("alpha")], eraser(), linear, tally)
    assert tally["asked"] == 2, "the whole text, which is what is left too, and the text without its only word"


# --- what cannot be measured --------------------------------------------------------------------------------------------


def reading(rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
    """The toy teacher, which cannot read a text of which nothing is left."""
    found = zip(rows, linear(rows, tally), strict=True)
    return [p if row.segments[0].text.strip() else RowError("empty_text", "nothing left") for row, p in found]


def test_an_order_of_which_a_text_cannot_be_read_is_left_out_and_the_others_stay() -> None:
    (made,) = measure([rationalised("alpha bank", 2)], eraser(fractions=(0.5,)), reading, Counter())
    assert isinstance(made, Erasure)
    told = set(zip(made.measure, made.order, strict=True))
    orders = ("importance", "random", "shuffled", "lexical")
    both = {(name, order) for name in ("comprehensiveness", "sufficiency") for order in orders}
    assert told == both | {("sufficiency", f"rationale{control}") for control in ("", "_random", "_shuffled")}
    found = {row.metric: (row.value, row.n) for row in faithfulness_sums([made]).metrics(ABOUT)}
    assert found["comprehensiveness:rationale"] == (None, 0)
    assert found["comprehensiveness_gain:rationale_random"] == (None, 0)
    assert found["sufficiency:rationale"] == (0.0, 1)


def test_a_row_whose_own_text_has_no_probability_has_its_error() -> None:
    def failing(rows: Sequence[Example], tally: Counter[str]) -> list[float | RowError]:
        found = zip(rows, linear(rows, tally), strict=True)
        return [RowError("out_of_memory", "too large") if "beta" in row.segments[0].text else p for row, p in found]

    rows = [rationalised(), rationalised("alpha gamma", uid="r2")]
    error, made = measure(rows, eraser(), failing, Counter())
    assert error == RowError("out_of_memory", "too large")
    assert isinstance(made, Erasure)


def test_a_row_without_candidates_says_nothing_and_is_no_error() -> None:
    (made,) = measure([rationalised("is it?")], eraser(), linear, Counter())
    assert isinstance(made, Erasure)
    assert (made.fall, made.probability) == ([], pytest.approx(BASE + 0.01))


@pytest.mark.parametrize("rows", [[], [dataclasses.replace(rationalised("is it?"))]], ids=["no rows", "no candidates"])
def test_without_anything_to_erase_every_mean_is_null(rows: list[RationaleRow]) -> None:
    found = figures(rows)
    assert {value for name, value in found.items() if name != "answer_probability"} == {None}
    assert {name.partition(":")[0] for name in found} <= set(METRICS)


def test_an_empty_rationale_changes_nothing_when_it_is_erased() -> None:
    row = dataclasses.replace(rationalised(), rationale=[False] * 10, rationale_text="")
    falls = measured(row)
    assert falls["comprehensiveness", "rationale", 0.0] == 0.0
    assert falls["sufficiency", "rationale", 0.0] == pytest.approx(0.75)


# --- sums ---------------------------------------------------------------------------------------------------------------


def test_sums_of_shards_add_up_and_survive_the_way_through_a_file() -> None:
    rows = [rationalised(" ".join(order), uid="".join(order)) for order in itertools.permutations(list(WEIGHTS)[:4])]
    made = [row for row in measure(rows, eraser(), linear, Counter()) if isinstance(row, Erasure)]
    read = from_table(to_table(made, Erasure), Erasure)
    whole = faithfulness_sums(made).metrics(ABOUT)
    parts = (faithfulness_sums(read[:5]) + FaithfulnessSums() + faithfulness_sums(read[5:])).metrics(ABOUT)
    assert [(row.metric, row.n) for row in parts] == [(row.metric, row.n) for row in whole]
    assert [row.value for row in parts] == pytest.approx([row.value for row in whole], abs=1e-6)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.1, 0.4, -0.2, 0.3, 0.3]
    low, high = sum((Tally.of([value]) for value in values), Tally()).interval or (0, 0)
    mean = sum(values) / 5
    half = 2.7764451051977987 * math.sqrt(sum((value - mean) ** 2 for value in values) / 4 / 5)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=1e-9)
    assert Tally.of([0.1]).interval is None


# --- the teacher --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_teacher_says_how_probable_the_answer_is_among_the_label_set(tmp_path: Path, kind: str) -> None:
    family = tiny.family(tiny.tiny_models(tmp_path)[kind])
    rows = [dataclasses.replace(row, target=row.target or (row.label_set or ["river"])[0]) for row in tiny.rows_for(kind)]
    together, tally = Teacher(family, 200).ask(rows, Counter()), Counter[str]()
    alone = [Teacher(family, 10_000).ask([row], tally)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)
    assert tally["tokens"] > 0
    for row, found in zip(rows, together, strict=True):
        labels = row.label_set or [row.target]
        (logprobs,) = family.read([family.encode(row.segments)]).logprobs([[family.encode_answer(text) for text in labels]])
        shares = torch.tensor(logprobs, dtype=torch.float64).exp()
        expected = shares[labels.index(row.target)] / (shares.sum() if row.label_set else 1)
        assert found == pytest.approx(expected.item(), abs=1e-5)


def test_the_stage_asks_its_teacher_about_erased_texts(tmp_path: Path) -> None:
    source = tiny.tiny_source(tmp_path)
    rationales = RationalesConfig()
    unmerged = rationales.model_copy(update={"merge_duplicates": False})
    config = FaithfulnessConfig(fractions=(0.5,))
    words = unmerged.units, rationales.units, rationales.control
    recipe = Faithfulness(config, source, *words, rationales.roles, by_importance=True, device="cpu", threads=1)
    rows = [rationalised("money in the river bank, or a cake?", scores={"river": 1.0}), rationalised("coffee", uid="r2")]
    tally: Counter[str] = Counter()
    first, second = pickle.loads(pickle.dumps(recipe)).open()(rows, tally)
    assert isinstance(first, Erasure)
    assert isinstance(second, Erasure)
    assert tally["tokens"] > 0
    assert first.explained_answer == "bank"
    family = open_family(load(source, "cpu"), source.config)
    (trial,) = [t for t in eraser(fractions=(0.5,)).trials(rows[0]) if (t.measure, t.order) == ("sufficiency", "importance")]
    asked = dataclasses.replace(
        tiny.example(target="bank", label_set=["bank", "park"]), segments=[Segment("question", text) for text in trial.texts]
    )
    (left,) = Teacher(family, 1000).ask([asked], Counter())
    place = list(zip(first.measure, first.order, strict=True)).index(("sufficiency", "importance"))
    assert first.fall[place] == pytest.approx(first.probability - left, abs=1e-5)  # type: ignore[operator]
    assert first.fall[place] != 0
