"""The report: what it says in words, what it draws, and that nothing missing or hostile breaks it."""

import dataclasses
import json
from collections import Counter
from html.parser import HTMLParser

import pytest

from kd.evaluation.metrics import About, Counts, Mean, RationaleSums, chance_metrics
from kd.rationales import AttributionSource, RationalesConfig, Rationalise, TopK
from kd.reporting.heatmap import drawn
from kd.reporting.plots import dot_plot
from kd.reporting.report import Report, Shown, headline, to_html, to_json, to_markdown, warnings
from kd.reporting.tables import (
    Table,
    accuracy_table,
    as_markdown,
    as_text,
    rationale_table,
    scores,
    stage_table,
    terminal_table,
)
from kd.rows import Attribution, Example, MetricRow, Prediction, RationaleRow, RowError, Segment, Span
from kd.spans import words
from kd.store import Manifest
from tests.test_rationales import attributed

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def answers(variant: str, *right: int, rows: int = 100, unparsed: int = 0, subject: str = "student") -> list[MetricRow]:
    """Metrics of a variant that got `right` of `rows` rows right with seeds 0, 1, ..."""
    return [
        metric
        for seed, correct in enumerate(right)
        for metric in Counts(ok=rows - unparsed, unparsed=unparsed, correct=correct).metrics(
            About(subject, "evaluate", variant, seed, "toy", "test")
        )
    ]


def unlabelled(variant: str) -> list[MetricRow]:
    return Counts(ok=50, unlabelled=50).metrics(About("student", "evaluate", variant, 0, "toy", "test"))


def chance_of(level: float) -> list[MetricRow]:
    return chance_metrics(Mean(100 * level, 100), About("task", "evaluate", "chance", None, "toy", "test"))


def rationales(source: str, hits: int, with_evidence: int = 100) -> list[MetricRow]:
    sums = RationaleSums(rows=200, empty=1, words=600, with_evidence=with_evidence, hits=hits, chance_hits=40.0)
    return sums.metrics(About("rationales", "rationalize", source, None, "toy", "train"))


FULL = [
    *answers("teacher", 95, subject="teacher"),
    *answers("plain", 40, 46),
    *answers("words", 56, 60, unparsed=2),
    *answers("noise", 44, 46),
    *chance_of(0.25),
    *rationales("attribution", 90),
]


def manifest(**fields: object) -> Manifest:
    return Manifest(**{"stage": "s", "digest": "d", "config": {}, "inputs": {}, "seconds": 2.0, **fields})  # type: ignore[arg-type]


def row(text: str = "red gold blue", scores: tuple[float, ...] = (1.0, 4.0, -2.0)) -> Attribution:
    segments = [Segment("question", text), Segment("prompt", "\n(a) "), Segment("choice", "bank")]
    blanks = [0.0] * (len(words(segments)) - len(scores))
    return attributed(segments, [*scores, *blanks])


def with_rationale(k: int = 1, **fields: object) -> RationaleRow:
    changed = dataclasses.replace(row(), **fields)  # type: ignore[arg-type]
    (result,) = Rationalise(RationalesConfig(selection=TopK(k=k)), AttributionSource()).open()([changed], Counter())
    assert isinstance(result, RationaleRow)
    return result


def predicted(example: Example, **fields: object) -> Prediction:
    base = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
    made = {"student": "s", "variant": "words", "seed": 1, "answer": "bank", "raw": "bank", "choice_logprobs": []}
    return Prediction(**base | made | {"status": "ok", "correct": True, "truncated_tokens": 0} | fields)


def report(metrics: list[MetricRow] | None = None, **fields: object) -> Report:
    stages = {"prepare": manifest(rows=10, rows_per_s=5.0)}
    base = {"name": "run", "metrics": FULL if metrics is None else metrics, "stages": stages, "config": {"k": 1}}
    return Report(**base | {"baseline": "plain"} | fields)  # type: ignore[arg-type]


# --- the headline ---------------------------------------------------------------------------------------------------------


def test_the_headline_names_the_best_variant_its_distances_and_the_seeds() -> None:
    assert headline(report()) == (
        "words has the highest mean accuracy of 3 variants, 58.0% over 2 seeds: 15.0 points above label only (plain, 43.0%)"
        " and 13.0 points above the next best (noise, 45.0%). A difference over 2 seeds proves nothing by itself, and no test"
        " of significance was made."
    )


def test_the_headline_says_so_when_label_only_is_best() -> None:
    said = headline(report([*answers("plain", 60), *answers("words", 50), *answers("noise", 55)]))
    assert said.startswith("plain has the highest mean accuracy of 3 variants, 60.0% over a single seed: 5.0 points above")
    assert "label only" not in said


def test_a_tie_is_called_level() -> None:
    assert "level with label only (plain, 50.0%)" in headline(report([*answers("words", 50), *answers("plain", 50)]))


def test_variants_with_different_numbers_of_seeds_are_told() -> None:
    assert "over 1 to 2 seeds" in headline(report([*answers("words", 50), *answers("plain", 40, 42)]))


def test_without_a_label_only_variant_the_next_best_is_named() -> None:
    said = headline(report(baseline=None))
    assert "13.0 points above the next best (noise, 45.0%)." in said
    assert "label only" not in said


@pytest.mark.parametrize(
    "metrics,said",
    [
        ([], "No student has been evaluated yet."),
        (answers("teacher", 95, subject="teacher"), "No student has been evaluated yet."),
        (unlabelled("plain"), "No accuracy: the 50 evaluated rows have no labels. The predictions are kept."),
        (answers("words", 50, 60), "words has a mean accuracy of 55.0% over 2 seeds; no other variant has one."),
    ],
)
def test_the_headline_says_what_is_missing(metrics: list[MetricRow], said: str) -> None:
    assert headline(report(metrics)) == said


@pytest.mark.parametrize("metrics", [FULL, [], unlabelled("plain"), answers("words", 50)])
def test_nothing_is_ever_called_shown_or_significant(metrics: list[MetricRow]) -> None:
    said = headline(report(metrics)).lower()
    assert "shown" not in said
    assert "significant" not in said


# --- warnings -------------------------------------------------------------------------------------------------------------


def test_a_teacher_near_chance_is_said_loudly_and_its_rationales_are_void() -> None:
    metrics = [
        *answers("teacher", 26, subject="teacher"),
        *chance_of(0.25),
        *rationales("attribution", 90),
        *rationales("llm", 80),
    ]
    (warning,) = warnings(report(metrics))
    assert warning.startswith("The teacher is near chance: 26.0% of 100 rows, where guessing gives 25.0%.")
    assert [line[1] for line in rationale_table(metrics).rows] == ["void", "80.0"]
    assert warning in to_json(report(metrics))["warnings"]
    assert f"**{warning}**" in to_markdown(report(metrics))
    assert 'role="alert"' in to_html(report(metrics))


def test_a_teacher_that_only_its_own_stage_has_measured_is_judged_by_that() -> None:
    measured = Counts(ok=100, correct=24).metrics(About("teacher", "teach", "teacher", 0, "toy", "validation"))
    (warning,) = warnings(report([*measured, *chance_of(0.25)]))
    assert "24.0% of 100 rows" in warning


def test_a_good_teacher_is_no_warning() -> None:
    assert warnings(report()) == []
    assert 'role="alert"' not in to_html(report())


# --- tables ---------------------------------------------------------------------------------------------------------------


def test_the_accuracy_table_has_the_teacher_each_variant_and_chance() -> None:
    table = accuracy_table(FULL)
    assert table.rows[0] == ("teacher", "95.0", "–", "95.0", "100", "100.0", "0.0")
    assert table.rows[2] == ("words", "58.0", "2.8", "56.0 60.0", "100", "98.0", "0.0")
    assert table.rows[-1][:2] == ("chance", "25.0")
    assert table.notes == ["No spread for teacher: a single seed has none."]


def test_the_teachers_accuracy_of_another_stage_is_not_mixed_in() -> None:
    other = Counts(ok=100, correct=10).metrics(About("teacher", "teach", "teacher", 0, "toy", "validation"))
    assert accuracy_table([*FULL, *other]) == accuracy_table(FULL)


def test_rows_without_labels_have_a_dash_and_the_reason() -> None:
    table = accuracy_table(unlabelled("plain"))
    assert table.rows[0] == ("plain", "–", "–", "–", "50", "100.0", "0.0")
    assert table.notes[0] == "No accuracy for plain: the rows have no labels; the predictions are kept."
    assert table.notes[1].startswith("No chance level")


def test_rationales_without_evidence_have_a_dash_and_the_reason() -> None:
    table = rationale_table(rationales("llm", 0, with_evidence=0))
    assert table.rows[0] == ("llm", "–", "–", "3.0", "0.5", "200", "0")
    assert table.notes == ["No hit rate for llm: the rows have no human evidence."]


def test_a_stage_says_its_errors_by_reason_and_an_absent_one_that_it_is_absent() -> None:
    done = manifest(
        rows=1200, errors={"too_long": 1, "empty_text": 3}, rows_per_s=600.0, counts={"ok": 1196}, figures={"loss": 0.12345}
    )
    table = stage_table({"prepare": done, "train": None})
    assert table.rows[0] == ("prepare", "1,200", "3 empty_text, 1 too_long", "2.0", "600.0", "cpu", "ok 1,196, loss 0.1235")
    assert table.rows[1] == ("train", *["–"] * 6)
    assert table.notes == ["Not complete: train."]


def test_the_terminal_table_is_aligned_and_at_most_100_columns_wide() -> None:
    metrics = [*answers("a" * 80, *range(40, 70)), *answers("b", 50)]
    lines = terminal_table(metrics).splitlines()
    assert max(map(len, lines)) == 100
    assert lines[0].rstrip().endswith("cut %")
    assert [line[-5:] for line in lines[2:4]] == ["  0.0"] * 2
    assert len(lines[2]) == len(lines[3])
    assert "…" in lines[2]


def test_numbers_are_never_clipped_to_make_room_for_a_name() -> None:
    table = Table("t", ("model", "mean %"), [("x" * 50, "58.0")], left=frozenset({"model"}))
    assert as_text(table, width=20).splitlines()[2] == "x" * 11 + "…    58.0"


def test_markdown_cells_cannot_break_the_table() -> None:
    table = Table("t", ("model", "mean %"), [("a|b\nc", "58.0")], notes=["note"], left=frozenset({"model"}))
    assert as_markdown(table) == "## t\n\n| model | mean % |\n| --- | ---: |\n| a\\|b c | 58.0 |\n\nnote"


# --- heat map and plot ----------------------------------------------------------------------------------------------------


def test_the_drawn_pieces_joined_are_the_text_that_the_model_read() -> None:
    shown = drawn(with_rationale())
    assert ["".join(piece.text for piece in segment.pieces) for segment in shown] == ["red gold blue", "\n(a) ", "bank"]
    assert [segment.role for segment in shown] == ["question", "prompt", "choice"]


def test_colour_is_the_importance_over_the_largest_of_the_row() -> None:
    pieces = [piece for segment in drawn(with_rationale()) for piece in segment.pieces if piece.heat is not None]
    assert [piece.heat for piece in pieces][:3] == [0.25, 1.0, -0.5]
    assert [piece.text for piece in pieces if piece.is_rationale] == ["gold"]
    assert pieces[1].title == "importance 4, 57.1% of the row, in the rationale"


def test_an_attribution_without_rationale_is_drawn_with_the_same_colours() -> None:
    heats = [[piece.heat for segment in drawn(one) for piece in segment.pieces] for one in (row(), with_rationale())]
    assert heats[0] == heats[1]


def test_a_row_whose_scores_are_all_zero_has_no_colour() -> None:
    assert {piece.heat for segment in drawn(row(scores=(0.0,))) for piece in segment.pieces} == {None, 0.0}


def test_human_evidence_is_marked() -> None:
    pieces = [piece for segment in drawn(with_rationale(evidence=[Span(0, 5, 6)])) for piece in segment.pieces]
    assert [piece.text for piece in pieces if piece.is_evidence] == ["gold"]


def test_the_plot_places_seeds_between_its_ticks() -> None:
    plot = dot_plot(scores([*answers("a", 40, 60)]), 0.25)
    assert plot is not None
    assert [tick.title for tick in plot.ticks] == ["20", "30", "40", "50", "60", "70"]
    at = {tick.title: tick.x for tick in plot.ticks}
    assert [dot.x for dot in plot.bands[0].dots] == [at["40"], at["60"]]
    assert plot.bands[0].mean.x == at["50"]
    assert plot.chance is not None
    assert plot.chance.x == pytest.approx((at["20"] + at["30"]) / 2)


def test_accuracies_of_zero_and_one_stay_on_the_plot() -> None:
    plot = dot_plot(scores([*answers("a", 0, 100)]), None)
    assert plot is not None
    assert [plot.ticks[0].title, plot.ticks[-1].title] == ["0", "100"]


def test_there_is_no_plot_without_accuracy() -> None:
    assert dot_plot(scores(unlabelled("a")), 0.5) is None


# --- the files ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: its tags, what they refer to, whether they nest."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in self.VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def full_report() -> Report:
    shown = with_rationale()
    answered = [predicted(shown), predicted(shown, seed=2, answer=None, raw="bnk", status="unparsed", correct=False)]
    return report(examples=[Shown(shown, answered), Shown(row())], notes=["A toy."])


def test_the_page_is_well_formed_and_needs_no_other_file_and_no_script() -> None:
    made = to_html(full_report())
    page = Page(made)
    assert page.open_tags == []
    assert page.references == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in made
    assert "@import" not in made


def test_the_page_keeps_the_line_breaks_of_the_input() -> None:
    assert ">\n</span>" not in to_html(full_report())  # a break is text, not markup that the template adds
    assert '<span class="prompt">\n<span' in to_html(full_report())


def test_text_of_the_corpus_cannot_become_markup() -> None:
    shown = with_rationale(uid=HOSTILE, target=HOSTILE, generated=HOSTILE, label_set=[HOSTILE])
    hostile = dataclasses.replace(shown, segments=[*shown.segments, Segment("text", HOSTILE)], rationale_text=HOSTILE)
    made = report(
        [*FULL, *answers(HOSTILE, 50)],
        examples=[Shown(hostile, [predicted(hostile, raw=HOSTILE, answer=HOSTILE)])],
        stages={HOSTILE: manifest(rows=1, figures={"model": HOSTILE})},
        config={"name": HOSTILE},
        name=HOSTILE,
        notes=[HOSTILE],
    )
    page = to_html(made)
    assert "script" not in Page(page).tags
    assert "<script" not in page


def test_the_page_says_what_models_answered_and_how_that_was_judged() -> None:
    page = to_html(full_report())
    for said in ("words, seed 1", ">right<", "words, seed 2", ">bnk<", ">unparsed<", "A toy.", "No answers of students"):
        assert said in page


def test_a_prediction_with_an_error_or_without_label_has_a_verdict_too() -> None:
    shown = with_rationale()
    failed = predicted(shown, error=RowError("too_long", "600 tokens"), status="", correct=None, answer=None, raw="")
    unknown = predicted(shown, correct=None)
    (example,) = to_json(report(examples=[Shown(shown, [failed, unknown])]))["examples"]
    assert [answer["verdict"] for answer in example["answers"]] == ["too_long", "no label"]


@pytest.mark.parametrize(
    "made",
    [
        report([], stages={}, config={}, baseline=None),
        report([], stages={"prepare": None, "teach": None}),
        report(unlabelled("plain")),
        report(answers("plain", 50)),
        report(
            [],
            examples=[
                Shown(
                    with_rationale(
                        target=None, generated=None, ranked=None, explained_answer=None, label_set=[], target_logprob=None
                    )
                )
            ],
        ),
    ],
    ids=["nothing", "no stage complete", "no labels", "one seed", "an example without any answer"],
)
def test_whatever_is_missing_renders_as_a_dash(made: Report) -> None:
    assert "–" in to_html(made)
    assert Page(to_html(made)).open_tags == []
    assert "–" in to_markdown(made)
    json.dumps(to_json(made), allow_nan=False)


def test_the_json_holds_every_metric_row_and_the_means_over_seeds_once() -> None:
    content = json.loads(json.dumps(to_json(full_report()), allow_nan=False))
    fields = {field.name for field in dataclasses.fields(MetricRow)}
    assert all(set(metric) == fields for metric in content["metrics"])
    means = [m for m in content["metrics"] if m["metric"] == "accuracy" and m["seed"] is None and m["variant"] == "words"]
    assert [mean["value"] for mean in means] == [pytest.approx(0.58)]
    assert to_json(report(full_report().all_metrics))["metrics"] == to_json(report())["metrics"]
    assert {"metrics", "stages", "config", "examples", "headline"} <= set(content)


def test_markdown_marks_the_rationale_in_the_text() -> None:
    assert "> red **gold** blue" in to_markdown(full_report())
