"""A row is declared once; its schema, its checks and its conversion follow from the declaration."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from kd import arrow, rows
from kd.agreement_rows import StudentAttribution
from kd.audit_rows import Erasure, Measured
from kd.contract import hints, optional
from kd.rows import Attribution, Example, Features, MetricRow, Prediction, RationaleRow, RowError, Segment, Span
from kd.shards import check_conserved

GOLDEN = Path(__file__).parent / "golden" / "schemas.txt"
ROW_TYPES = (Example, Attribution, RationaleRow, StudentAttribution, Prediction, Features, Erasure, Measured, MetricRow)


def example(uid: str = "a", **changes: object) -> Example:
    fields = {
        "uid": uid,
        "error": None,
        "task": "toy",
        "split": "train",
        "segments": [Segment("question", "Where is it?"), Segment("choice", "home")],
        "target": "home",
        "label_set": ["home", "away"],
        "evidence": [Span(0, 0, 5)],
        "llm_rationale": None,
        "llm_label": None,
    }
    return Example(**fields | changes)


def attribution(uid: str = "a", **changes: object) -> Attribution:
    fields = {field.name: getattr(example(uid), field.name) for field in dataclasses.fields(Example)} | {
        "model": "tiny@1",
        "method": "saliency",
        "explained": "gold",
        "explained_answer": "home",
        "generated": "home",
        "generated_cut": False,
        "ranked": "home",
        "choice_logprobs": [-0.25, -2.0],
        "target_logprob": -0.25,
        "tokens": ["Where", "is"],
        "token_segment": [0, 0],
        "token_start": [0, 6],
        "token_end": [5, 8],
        "scores": [0.5, 0.125],
        "completeness_gap": None,
        "truncated_tokens": 0,
        "fold": 0,
    }
    return Attribution(**fields | changes)


def test_the_schemas_are_the_reviewed_ones() -> None:
    text = "\n\n".join(f"{row_type.__name__}\n{arrow.schema(row_type)}" for row_type in ROW_TYPES) + "\n"
    assert text == GOLDEN.read_text(), f"a row contract changed; if that is meant, write the new schemas to {GOLDEN.name}"


@pytest.mark.parametrize(
    "sample",
    [
        [],
        [example()],
        [
            example("a", target=None, evidence=[]),
            example("b", error=RowError("too_long", "9 tokens")),
            example("c", segments=[], evidence=[]),
        ],
        [attribution("a"), attribution("b", tokens=[], token_segment=[], token_start=[], token_end=[], scores=[])],
        [Features(uid="f", error=None, term=[0, 1], input_ids=[[1, 2], [3]], target_ids=[[], [4]], truncated=False)],
    ],
)
def test_rows_survive_the_way_to_a_table_and_back(sample: list[rows.Row]) -> None:
    row_type = type(sample[0]) if sample else Example
    table = arrow.to_table(sample, row_type)
    assert arrow.from_table(table, row_type) == sample
    assert arrow.from_table(table.slice(1), row_type) == sample[1:]


def test_a_table_of_several_chunks_reads_as_one() -> None:
    table = pa.concat_tables([arrow.to_table([attribution(uid)], Attribution) for uid in "abc"])
    assert [row.uid for row in arrow.from_table(table, Attribution)] == ["a", "b", "c"]


def test_a_missing_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="target"):
        Example(
            uid="a",
            error=None,
            task="t",
            split="train",
            segments=[],
            label_set=[],
            evidence=[],
            llm_rationale=None,
            llm_label=None,
        )


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal length.*'scores': 1"):
        attribution(scores=[0.5])


@pytest.mark.parametrize("span", [Span(0, 0, 99), Span(2, 0, 1), Span(0, 5, 3), Span(0, -1, 2)])
def test_a_span_outside_its_text_is_refused(span: Span) -> None:
    with pytest.raises(ValueError, match="offsets inside one of the texts"):
        example(evidence=[span])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uid": ""}, "uid: expected a non-empty string"),
        ({"split": "dev"}, "split: expected one of train, validation, test, got 'dev'"),
        ({"segments": [Segment("title", "x")], "evidence": []}, "role: expected one of context"),
    ],
)
def test_an_unknown_word_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example(**changes)


def test_a_reason_outside_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"error\.reason: expected one of unparsable"):
        RowError("bad luck", "")


def test_a_null_where_none_may_be_is_found_at_any_depth() -> None:
    good = arrow.to_table([example()], Example)
    top = good.set_column(0, arrow.schema(Example).field("uid"), pa.array([None], pa.string()))
    with pytest.raises(ValueError, match=r"Example\.uid: expected no nulls, got 1 of 1"):
        arrow.check(top, Example)
    index = good.schema.get_field_index("label_set")
    deep = good.set_column(
        index, arrow.schema(Example).field("label_set"), pa.array([["home", None]], good.schema.field(index).type)
    )
    with pytest.raises(ValueError, match=r"Example\.label_set\[\]: expected no nulls"):
        arrow.check(deep, Example)


def test_another_schema_is_refused_with_the_difference() -> None:
    table = arrow.to_table([example()], Example)
    with pytest.raises(ValueError, match=r"missing \['split'\], unknown \['part'\]"):
        arrow.check(table.rename_columns(["part" if name == "split" else name for name in table.schema.names]), Example)
    with pytest.raises(ValueError, match=r"Attribution: columns differ"):
        arrow.check(table, Attribution)
    index = table.schema.get_field_index("target")
    with pytest.raises(ValueError, match=r"Example\.target: expected string, got int64"):
        arrow.check(table.set_column(index, "target", pa.array([1])), Example)


def test_the_digest_tells_contracts_apart() -> None:
    assert len({arrow.schema_digest(row_type) for row_type in ROW_TYPES}) == len(ROW_TYPES)


@pytest.mark.parametrize("row_type", [Attribution, RationaleRow, Prediction])
def test_an_errored_row_keeps_what_it_had_and_says_why(row_type: type[Example]) -> None:
    failed = rows.as_errored(example(), row_type, RowError("not_finite", "score 3"))
    assert type(failed) is row_type
    assert failed.error == RowError("not_finite", "score 3")
    assert (failed.uid, failed.segments, failed.evidence) == ("a", example().segments, example().evidence)
    assert arrow.from_table(arrow.to_table([failed], row_type), row_type) == [failed]


def test_conservation_is_broken_by_a_lost_an_added_a_doubled_and_a_moved_row() -> None:
    a, b, c = example("a"), example("b"), example("c")
    check_conserved([a, b], [a, b])
    for after in ([a], [a, b, c], [a, c], [b, a]):
        with pytest.raises(ValueError, match="went|took 2 rows"):
            check_conserved([a, b], after)
    with pytest.raises(ValueError, match="'a' occurs twice"):
        check_conserved([a, a], [a, a])


def test_what_is_counted_about_a_row() -> None:
    assert example(target=None).tally() == ("unlabelled",)
    assert attribution(truncated_tokens=3).tally() == ("input_truncated", "ranked_right", "generated_right")
    assert attribution(ranked="away", generated="away").tally() == ()
    assert attribution(ranked=None, label_set=[]).tally() == (), "of free text the task says what is right"
    assert attribution(error=RowError("too_long", "")).tally() == ()


@pytest.mark.parametrize("row_type", [each for each in ROW_TYPES if each is not MetricRow])
@pytest.mark.parametrize("known", [example(), attribution()], ids=["example", "attribution"])
def test_a_row_that_failed_in_an_earlier_stage_can_be_written_by_every_later_one(
    known: Example, row_type: type[rows.Row]
) -> None:
    """What an earlier stage could not say is null there; a later row may have a field of that name which must not be."""
    nulls = {name: None for name, hint in hints(type(known)).items() if optional(hint)[1]}
    failed = dataclasses.replace(known, **nulls | {"error": RowError("too_long", "300 tokens")})
    written = arrow.to_table([rows.as_errored(failed, row_type, failed.error)], row_type)
    assert arrow.from_table(written, row_type)[0].error == failed.error
