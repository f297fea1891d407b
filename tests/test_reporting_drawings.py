"""What a report draws: the heat map of a row and the plot of the accuracies."""

import pytest

from kd.reporting.heatmap import drawn
from kd.reporting.plots import dot_plot
from kd.reporting.tables import scores
from kd.rows import Span
from tests.tiny_reports import answers, row, unlabelled, with_rationale


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
