"""The files of a report: page, JSON and Markdown, which nothing missing or hostile breaks."""

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from kd.reporting.report import Report, Shown, to_html, to_json, to_markdown
from kd.rows import MetricRow, RowError, Segment
from tests.tiny_reports import FULL, answers, manifest, predicted, report, row, unlabelled, with_rationale

HOSTILE = "<script>alert('x')</script> & \"quoted\""


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


def test_the_json_has_the_notes_of_every_table_which_say_why_a_number_is_missing() -> None:
    made = report(unlabelled("plain"))
    notes = to_json(made)["table_notes"]
    assert notes["Accuracy"][0] == "No accuracy for plain: the rows have no labels; the predictions are kept."
    assert notes == {table.title: list(table.notes) for table in (*made.tables, *made.beside_accuracy) if table.notes}
    page = to_html(made)
    assert all(note in page for said in notes.values() for note in said if "'" not in note)


def test_markdown_marks_the_rationale_in_the_text() -> None:
    assert "> red **gold** blue" in to_markdown(full_report())
