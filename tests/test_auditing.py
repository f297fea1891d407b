"""The audit's rows add up to the measures that they were made of, on planted evidence to known values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from operator import eq

import pytest

from kd.arrow import from_table, to_table
from kd.audit_rows import Measured
from kd.evaluation.auditing import AuditConfig, AuditSums, Judge, MeasureRationales, Reported, audit_sums
from kd.evaluation.gate import GAINS, judged, over_strongest
from kd.evaluation.metrics import About
from kd.evaluation.overlap import TEXT, WORDS, label_overlap
from kd.evaluation.plausibility import HARD, SHUFFLED, SOFT, hard_plausibility, soft_plausibility
from kd.evaluation.sizes import GAP, SIZE
from kd.evaluation.sums import Why
from kd.rationales import RationalesConfig
from kd.rows import MetricRow, RationaleRow, RowError, as_errored
from kd.tasks.columns import Columns, Part
from kd.tasks.svamp import Svamp
from tests.test_measures_data import IN_QUESTION, WITH_OPTIONS, on_answer, on_evidence, on_nothing, planted, quoted_by_chance
from tests.tiny_measures import SINGLE_WORDS, rationale_row, single_words

ABOUT = About("rationales", "audit", "attribution", None, "toy", "train")
TEACHER = About("teacher", "audit", "teacher", 0, "toy", "train")
RANKED = Reported(ranked=True, is_text=False, explained="gold")
TOLD = Reported(ranked=False, is_text=True, explained="gold")


def recipe(k: int | None = 1, is_text: bool = False) -> MeasureRationales:
    own, mixed = IN_QUESTION.units, (IN_QUESTION.control, WITH_OPTIONS.control)
    return MeasureRationales(own, own, WITH_OPTIONS.units, *mixed, k, is_text, False, eq)


def of_words(judge: Judge = eq, k: int | None = 1) -> MeasureRationales:
    mixed = SINGLE_WORDS.control
    return MeasureRationales(single_words, single_words, single_words, mixed, mixed, k, False, False, judge)


def measured(rows: Sequence[RationaleRow], by: MeasureRationales) -> list[Measured]:
    return from_table(to_table(by.open()(list(rows), Counter()), Measured), Measured)


def by_metric(sums: AuditSums, reported: Reported = RANKED) -> dict[str, MetricRow]:
    return {row.metric: row for row in sums.metrics(ABOUT, reported)}


def test_a_teacher_that_looks_at_the_planted_cue_alone_has_every_known_value() -> None:
    rows = planted(on_evidence, IN_QUESTION)
    sums = audit_sums(measured(rows, recipe()))
    found = by_metric(sums)
    assert {name: found[name].value for name in ("token_f1", "iou_f1", "auprc")} == {"token_f1": 1, "iou_f1": 1, "auprc": 1}
    candidates = [len(IN_QUESTION.units(row, row.importance)) for row in rows]
    assert found["token_f1_chance"].value == pytest.approx(sum(1 / n for n in candidates) / 200)
    assert found["overlap_any:gold/gold/in/all"].value == 0, "a cue is no word of an answer"
    right = sum(row.label_set[0] == row.target for row in rows)  # the made-up teacher answers the first option
    assert (sums.answers.correct, sums.answers.labelled, sums.chance.value) == (right, 200, 0.25)
    assert sums.teacher(TEACHER)[0].value == right / 200
    assert found["overlap_any:gold/gold/out/right"].n == right
    assert found["overlap_any:gold/gold/out/wrong"].n == 200 - right


def test_a_teacher_that_looks_at_the_gold_option_alone_quotes_it_in_every_row() -> None:
    rows = planted(on_answer, WITH_OPTIONS)
    found = by_metric(audit_sums(measured(rows, recipe())))
    for name in ("overlap_any", "overlap_top1", "overlap_all"):
        assert found[f"{name}:gold/gold/in/all"].value == 1
        assert found[f"{name}_chance:gold/gold/in/all"].value == pytest.approx(quoted_by_chance(rows)[0])
        assert found[f"{name}:gold/gold/out/all"].value == 0, "no word of a planted question is one of an answer"


def test_rows_add_up_shard_by_shard_to_what_the_measures_say_of_all_of_them() -> None:
    rows = planted(on_nothing, WITH_OPTIONS, 60)
    done = measured(rows, recipe(2))
    found = by_metric(audit_sums(done[:25]) + audit_sums(done[25:]) + AuditSums())
    whole = hard_plausibility(rows, IN_QUESTION.units).results(HARD) + soft_plausibility(rows, IN_QUESTION.units).results(SOFT)
    assert [found[one.measure.name].value for one in whole] == pytest.approx([one.value for one in whole])
    for piece, sums in label_overlap(rows, WITH_OPTIONS.units, 2, shuffled=WITH_OPTIONS.control).items():
        part = f"{piece.explained}/{piece.answer}/{piece.options}/all"
        for result in sums.results(WORDS):
            row = found[f"{result.measure.name}:{part}"]
            assert (row.n, row.ci_low is None) == (result.n, result.ci_low is None)
            assert row.value == (None if result.value is None else pytest.approx(result.value))


def test_rankings_are_measured_over_single_words_and_rationales_over_those_that_they_are_made_of() -> None:
    parts = (("question", "gold or tin gold"), ("choice", "gold"), ("choice", "tin"))
    scores = [2.0, 0.0, 3.0, 2.0, 0.0, 0.0]
    row = rationale_row(*parts, importance=scores, target="gold", evidence=[(0, "tin")], chosen=("gold",))
    merged = RationalesConfig(roles=("question",))
    single = merged.model_copy(update={"merge_duplicates": False})
    words = merged.units, single.units, single_words, merged.control, SINGLE_WORDS.control
    sums = audit_sums(measured([row], MeasureRationales(*words, 1, False, False, eq)))
    found = by_metric(sums)
    assert (found["auprc"].value, found["overlap_top1:gold/gold/in/all"].value) == (1, 0), "tin, before the golds' sum"
    assert found["token_f1_chance"].value == pytest.approx(1 / 2), "one of two words"


def test_only_a_chain_of_thought_is_measured_as_a_text_and_only_a_ranking_as_one() -> None:
    rows = planted(on_nothing, WITH_OPTIONS, 30)
    told = by_metric(audit_sums(measured(rows, recipe(None, is_text=True))), TOLD)
    ranked = by_metric(audit_sums(measured(rows, recipe(1))))
    assert (told["cot_any:llm/gold/in/all"].value, told["cot_any_chance:llm/gold/in/all"].value) == (1, 0.25)
    assert told["overlap_top1:gold/gold/in/all"].value is None
    assert "auprc" not in told
    assert not any(name.startswith("cot") for name in ranked)
    assert ranked["overlap_top1:gold/gold/in/all"].n == 30


def test_a_source_that_ranks_nothing_has_the_chance_of_words_that_it_could_have_taken() -> None:
    rows = planted(on_nothing, IN_QUESTION, 30)
    found = by_metric(audit_sums(measured(rows, recipe(None))), Reported(ranked=False, is_text=False, explained="gold"))
    assert found["overlap_any_chance:gold/gold/in/all"].value == 0, "no word of a planted question is one of an answer"
    assert (found["overlap_any_option_chance:gold/gold/in/all"].value or 0) > 0.2


@pytest.mark.parametrize(
    ("judge", "answer", "label", "right"),
    [
        (Columns(path="d.csv", prompt=[Part(column="q")], target="a").judge, "paris.", "Paris", 1),
        (Columns(path="d.csv", prompt=[Part(column="q")], target="a", match="exact").judge, "paris.", "Paris", 0),
        (Svamp().judge, "(84 / 2)", "( 84.0 / 2.0 )", 1),
        (Svamp().judge, "84 * 2", "( 84.0 / 2.0 )", 0),
    ],
)
def test_the_task_says_whether_an_answer_is_right(judge: Judge, answer: str, label: str, right: int) -> None:
    row = rationale_row(("question", "the capital"), target=label, ranked=answer, llm=("It is known.", answer))
    (one,) = measured([row], of_words(judge))
    assert (one.teacher_right, one.llm_right) == (bool(right), bool(right))
    accuracy, parsed, cut = audit_sums([one]).teacher(TEACHER)
    assert (accuracy.value, parsed.value, cut.value) == (right, 1, 0)


@pytest.mark.parametrize(
    ("written", "is_cut", "status"), [("( 84 / 2 )", False, "ok"), ("84 /", False, "unparsed"), ("42", True, "truncated")]
)
def test_beside_the_teachers_accuracy_stands_how_many_of_its_own_answers_are_none(
    written: str, is_cut: bool, status: str
) -> None:
    asked = rationale_row(("question", "how many"), target="( 84.0 / 2.0 )", ranked=None)
    found = measured([replace(asked, generated=written, generated_cut=is_cut)], of_words(Svamp().judge))
    assert found[0].teacher_status == status
    figures = {row.metric: row.value for row in audit_sums(found).teacher(TEACHER)}
    assert figures == {"accuracy": status == "ok", "parse_rate": status == "ok", "truncation_rate": status == "truncated"}


def test_without_evidence_plausibility_is_null_with_the_reason_and_the_rest_comes_out() -> None:
    row = rationale_row(("question", "red gold"), ("choice", "gold"), ("choice", "tin"), importance=[0, 2, 0, 0], target="gold")
    sums = audit_sums(measured([row], of_words()))
    nulls = sums.nulls(RANKED)
    assert {nulls[name] for name in PLAUSIBLE} == {"1 of 1 rows: the row has no human evidence"}
    found = by_metric(sums)
    assert found["token_f1"].value is None
    assert found["overlap_any:gold/gold/in/all"].value == 1
    assert (sums.answers.labelled, sums.chance.value) == (0, 0.5), "no own answer of the teacher is known"


def test_an_answer_that_is_no_part_of_the_input_leaves_label_overlap_null_with_the_reason() -> None:
    row = rationale_row(("question", "red gold"), importance=[0, 2], target="tin", evidence=[(0, "gold")])
    nulls = audit_sums(measured([row], of_words())).nulls(RANKED)
    reasons = {
        "gold/gold": "1 of 1 rows: the row has an answer of which no word is in the input",
        "gold/predicted": "1 of 1 rows: the row has no answer of the model",
    }
    assert nulls == {"completeness_gap_nats": "1 of 1 rows: the row has scores of a method that claims no sum"} | {
        f"{measure.name}:{part}/{options}/all": why
        for measure in WORDS
        for options in ("in", "out")
        for part, why in reasons.items()
    }


PLAUSIBLE = [measure.name for measure in (*HARD, *SOFT)]
HELD = [measure.name for measure in (*SIZE, *HARD)]
RANKS = [*HELD, *(measure.name for measure in (*GAP, *SOFT, *SHUFFLED))]
QUOTED = [
    f"{measure.name}:predicted/{answer}/{options}/all"
    for measure in WORDS
    for answer in ("gold", "predicted")
    for options in ("in", "out")
]
SAID = [f"{measure.name}:llm/{answer}/in/all" for measure in TEXT for answer in ("gold", "predicted")]


@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize(
    ("reported", "every"),
    [
        (Reported(ranked=True, is_text=False, explained="predicted"), {*RANKS, *QUOTED}),
        (Reported(ranked=False, is_text=False, explained="predicted"), {*HELD, *QUOTED}),
        (Reported(ranked=False, is_text=True, explained="predicted"), {*HELD, *QUOTED, *SAID}),
    ],
    ids=["ranked", "not ranked", "text"],
)
def test_without_rows_and_where_every_row_has_an_error_every_measure_is_null_with_the_reason(
    rows: int, reported: Reported, every: set[str]
) -> None:
    errored = as_errored(rationale_row(("question", "red")), Measured, RowError("too_long", "so many tokens"))
    sums = audit_sums([errored] * rows)
    why = "2 of 2 rows: the row has an error" if rows else "there is no row"
    assert sums.nulls(reported) == dict.fromkeys(every, why)
    assert {row.metric for row in sums.metrics(ABOUT, reported)} == every
    assert {(row.value, row.n) for row in sums.metrics(ABOUT, reported)} == {(None, 0)}


def test_rows_with_an_error_are_left_out_and_counted_beside_the_others() -> None:
    row = as_errored(rationale_row(("question", "red")), Measured, RowError("too_long", "so many tokens"))
    silent = measured([rationale_row(("question", "red gold"), target="gold")], of_words())
    nulls = (audit_sums([row]) + audit_sums(silent)).nulls(RANKED)
    assert nulls["token_f1"] == "1 of 2 rows: the row has an error; 1 of 2 rows: the row has no human evidence"


def test_rows_that_say_nothing_are_counted_by_reason_also_where_others_have_a_value() -> None:
    marked = rationale_row(("question", "red gold"), chosen=("red",), evidence=[(0, "red")])
    sums = audit_sums(measured([marked, rationale_row(("question", "red gold"))], of_words()))
    assert by_metric(sums)["token_f1"].value == 1
    assert sums.left_out(RANKED)["token_f1"] == {Why.NO_EVIDENCE: 1}
    assert "rationale_words" not in sums.left_out(RANKED)


# --- the gate -----------------------------------------------------------------------------------------------------------


(GAIN_NAME, GAIN_OF), (_, SHUFFLED_OF) = (name.split(":") for name in GAINS)


def gain(value: float | None) -> dict[str, MetricRow | None]:
    return {"attribution": ABOUT.row(GAIN_NAME, value, 100, (0.0, 0.4), of=GAIN_OF)}


def accuracy(value: float) -> MetricRow:
    return TEACHER.row("accuracy", value, 1000, (value - 0.02, value + 0.02))


def test_a_source_passes_whose_words_decide_so_much_more_than_random_ones() -> None:
    config = AuditConfig(min_faithfulness_gain=0.1)
    for value, passed in ((0.1, True), (0.099, False), (None, False)):
        (verdict,) = judged(config, gain(value), accuracy(0.9), 0.25)
        assert (verdict.source, verdict.passed) == ("attribution", passed)
    assert judged(config, {}, accuracy(0.9), None)[0].text.endswith("no row could be measured")
    assert judged(AuditConfig(), gain(0.0), accuracy(0.9), 0.25) == []


def test_a_source_is_judged_by_the_strongest_of_its_controls() -> None:
    config = AuditConfig(min_faithfulness_gain=0.1)
    over_random, over_shuffled = (
        ABOUT.row(GAIN_NAME, v, 100, (0.0, 0.4), of=of) for v, of in ((0.3, GAIN_OF), (0.05, SHUFFLED_OF))
    )
    (verdict,) = judged(config, {"attribution": over_strongest([over_random, over_shuffled])}, accuracy(0.9), 0.25)
    assert not verdict.passed
    assert "above words by its shuffled scores, its words make the answer's probability fall 0.050" in verdict.text
    unranked = ABOUT.row(GAIN_NAME, None, 0, of=SHUFFLED_OF)
    assert over_strongest([over_random, unranked]) == over_random
    assert over_strongest([unranked]) is None


def test_what_a_teacher_near_chance_says_passes_no_gate() -> None:
    (verdict,) = judged(AuditConfig(min_faithfulness_gain=0.1), gain(0.5), accuracy(0.26), 0.25)
    assert not verdict.passed
    assert verdict.text.endswith("is void: on train the teacher is near chance")
    (verdict,) = judged(AuditConfig(min_faithfulness_gain=0.1), gain(0.5), None, 0.25)
    assert verdict.passed
    assert verdict.text.endswith("how often the teacher is right there is not known")


def test_a_gain_that_may_be_an_accident_passes_no_gate() -> None:
    """One row has no interval; that of few rows may reach below nothing."""
    for row in (ABOUT.row(GAIN_NAME, 0.5, 1, of=GAIN_OF), ABOUT.row(GAIN_NAME, 0.5, 3, (-0.1, 0.9), of=GAIN_OF)):
        assert not judged(AuditConfig(min_faithfulness_gain=0.1), {"attribution": row}, accuracy(0.9), 0.25)[0].passed


def test_a_gate_without_a_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="min_faithfulness_gain is a gate on faithfulness, which is null"):
        AuditConfig(min_faithfulness_gain=0.1, faithfulness=None)
