"""The audit as tables: each value beside its chance, void where the teacher is near chance, a dash with its reason."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from kd.evaluation.metrics import About
from kd.evaluation.sums import Why
from kd.reporting.audit_table import audit_table, overlap_table
from kd.reporting.report import Report, to_json
from kd.reporting.tables import as_markdown
from kd.rows import MetricRow
from tests.tiny_reports import FULL, answers, chance_of


def audit(source: str, values: Mapping[str, float | None]) -> list[MetricRow]:
    about = About("rationales", "audit", source, None, "toy", "train")
    return [
        MetricRow(
            **asdict(about),
            metric=metric,
            value=value,
            ci_low=None,
            ci_high=None,
            n=0 if value is None else 50,
            against=None,
            p_value=None,
            higher_is_better=True,
        )
        for metric, value in values.items()
    ]


FALLS = {
    f"{measure}:{order}": value
    for measure, first in (("comprehensiveness", 0.4), ("sufficiency", 0.1))
    for order, value in (
        ("rationale", first),
        ("rationale_random", 0.05),
        ("rationale_shuffled", 0.15),
        ("importance", 0.3),
        ("random", 0.2),
        ("shuffled", 0.22),
        ("lexical", 0.25),
    )
}
WORDS = {
    f"{name}{ending}": value
    for name, values in (("token_f1", (0.8, 0.1, 0.2)), ("iou_f1", (0.7, 0.08, 0.18)), ("auprc", (0.9, 0.3, 0.4)))
    for ending, value in zip(("", "_chance", "_shuffled"), values, strict=True)
}
PART = "gold/gold/in/all"
OVERLAP = {
    f"overlap_{which}{beside}:{PART}": value
    for which, first in (("any", 0.68), ("top1", 0.4), ("all", 0.2))
    for beside, value in (("", first), ("_chance", 0.15), ("_option_chance", 0.25), ("_shuffled", 0.35))
}
RANKED = {"attribution"}
NEAR_CHANCE = [*answers("teacher", 26, subject="teacher"), *chance_of(0.25)]


def test_every_value_stands_beside_what_random_words_reach() -> None:
    table = audit_table(
        [*FULL, *audit("attribution", FALLS | WORDS), *audit("llm", {"token_f1": 0.5, "token_f1_chance": 0.1})], [], RANKED
    )
    assert table.rows == [
        ("attribution", "40.0 / 5.0 / 15.0", "10.0 / 5.0 / 15.0", "50", "80.0 / 10.0 / 20.0", "70.0 / 8.0 / 18.0", "–", "50"),
        ("attribution, ranked", *["30.0 / 20.0 / 22.0 / 25.0"] * 2, "50", "–", "–", "90.0 / 30.0 / 40.0", "50"),
        ("llm", "–", "–", "–", "50.0 / 10.0", "–", "–", "50"),
    ]


def test_a_teacher_near_chance_voids_what_follows_from_its_answers_and_nothing_else() -> None:
    values = [*audit("attribution", FALLS | WORDS | OVERLAP), *audit("llm", FALLS | WORDS | OVERLAP)]
    table = audit_table([*NEAR_CHANCE, *values], ["One reason."], RANKED)
    assert [line[1] for line in table.rows] == ["void"] * 3
    assert [line[4] for line in table.rows] == ["void", "–", "80.0 / 10.0"]
    assert table.notes[0].startswith("Void: on test the teacher is near chance")
    assert table.notes[1:] == ["One reason."]
    assert [line[5] for line in overlap_table([*NEAR_CHANCE, *values], RANKED).rows] == ["void", "68.0 / 15.0 / 25.0"]


def test_label_overlap_has_a_line_for_each_part_that_has_rows_and_one_for_a_text() -> None:
    wrong = {name.replace("/all", "/wrong"): value for name, value in OVERLAP.items()}
    nothing = {name.replace("/in/", "/out/"): None for name in OVERLAP}
    text = {"cot_any:llm/gold/in/all": 1.0, "cot_any_chance:llm/gold/in/all": 0.25, "cot_whole:llm/gold/in/all": 0.7}
    table = overlap_table([*audit("attribution", OVERLAP | wrong | nothing), *audit("llm", OVERLAP | wrong | text)], RANKED)
    assert [tuple(line[:5]) for line in table.rows] == [
        ("attribution", "gold", "gold", "in", "all"),
        ("attribution", "gold", "gold", "in", "wrong"),
        ("llm", "gold", "gold", "in", "all"),
        ("llm, text", "llm", "gold", "in", "all"),
    ]
    assert table.rows[0][5:] == (*(f"{first} / 15.0 / 25.0 / 35.0" for first in ("68.0", "40.0", "20.0")), "–", "50")
    assert table.rows[3][5:] == ("100.0 / 25.0", "–", "–", "70.0 / –", "50")


def test_without_an_audit_both_tables_say_so() -> None:
    assert "run audit" in audit_table(NEAR_CHANCE, []).notes[0]
    assert as_markdown(overlap_table(NEAR_CHANCE)).endswith("nothing was audited.")


def test_the_json_says_what_every_metric_of_the_audit_is() -> None:
    metrics = audit("attribution", FALLS | WORDS | OVERLAP)
    left_out = {"attribution": {"token_f1": {Why.NO_EVIDENCE: 3}}}
    found = to_json(Report(name="toy", metrics=metrics, stages={}, config={}, audit=["One reason."], left_out=left_out))
    assert {row["metric"].partition(":")[0] for row in found["metrics"]} <= set(found["measures"])
    assert found["audit"] == ["One reason."]
    assert json.loads(json.dumps(found))["left_out"] == {"attribution": {"token_f1": {"has no human evidence": 3}}}
