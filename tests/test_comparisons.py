"""Students compared from the files that they left, and what the report says of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jobs.comparisons import Predictions, compared
from kd.config import validate
from kd.errors import ConfigError
from kd.evaluation.significance import Comparison, SignificanceConfig, Verdict
from kd.manifests import Manifest, Shard
from kd.reporting.comparison_table import Comparisons, comparison_table
from kd.reporting.report import headline, to_html, to_json, to_markdown
from kd.rows import Prediction
from kd.store import Store
from tests.mini import MINI
from tests.tiny_reports import answers, manifest, predicted, report, row

WORDS, NOISE = Comparison(variant="words", against="plain"), Comparison(variant="words", against="noise")
BOTH = SignificanceConfig(primary=WORDS, others=(NOISE,), draws=2000)
Marks = Mapping[str, Sequence[str]]
"""By variant a string per seed: 1 for a row answered right, 0 for wrong, - for one with no label."""


def evaluated(folder: Path, marks: Marks, shard_rows: int = 7) -> tuple[Store, Predictions]:
    """A store with every student's predictions in shards of so many rows."""
    store, found = Store.at(str(folder)), dict[tuple[str, int], tuple[str, Manifest] | None]()
    for variant, by_seed in marks.items():
        for seed, each in enumerate(by_seed):
            where = f"predictions/{variant}/{seed}"
            rows = [_answer(uid, mark, variant, seed) for uid, mark in enumerate(each)]
            parts = [rows[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]
            shards = [Shard(f"test-{number}", "test", len(part)) for number, part in enumerate(parts)]
            for shard, part in zip(shards, parts, strict=True):
                store.publish_rows(f"{where}/{shard.file}", part, Prediction, {})
            found[variant, seed] = where, manifest(shards=shards, rows=len(rows))
    return store, found


def _answer(uid: int, mark: str, variant: str, seed: int) -> Prediction:
    correct = {"1": True, "0": False, "-": None}[mark]
    return predicted(row(), uid=f"row {uid}", variant=variant, seed=seed, correct=correct)


def better(marks: Marks, folder: Path, config: SignificanceConfig = BOTH) -> list[Verdict]:
    return compared(*evaluated(folder, marks), config)


CLEAR = {"words": ["1" * 38 + "00"] * 3, "plain": ["10" * 20, "01" * 20, "1100" * 10], "noise": ["1" * 37 + "000"] * 3}


def test_a_clear_difference_over_several_shards_is_shown_and_a_small_one_is_not(tmp_path: Path) -> None:
    plain, noise = better(CLEAR, tmp_path)
    assert (plain.in_words, noise.in_words) == ("better", "no difference shown")
    assert plain.difference == pytest.approx(38 / 40 - 20 / 40)
    assert (plain.seeds, plain.rows, plain.left_out) == (3, 40, 0)
    assert plain.p_value is not None
    assert plain.p_value <= 0.05
    assert noise.detectable is not None


def test_the_size_of_the_shards_changes_nothing(tmp_path: Path) -> None:
    small, large = (compared(*evaluated(tmp_path / str(size), CLEAR, size), BOTH) for size in (3, 1000))
    assert small == large


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    plain, _ = better({"words": ["1111-", "1110-"], "plain": ["0000-", "0110-"]}, tmp_path)
    assert (plain.rows, plain.left_out) == (4, 1)


@pytest.mark.parametrize(
    ("marks", "difference", "why"),
    [
        ({"words": ["11"], "plain": ["10"]}, 0.5, "one seed says nothing about how students scatter"),
        ({"words": ["11", "11"]}, None, "words and plain have no seed in common"),
        ({"words": ["", ""], "plain": ["", ""]}, None, "no row was answered: the split is empty"),
        ({"words": ["--", "--"], "plain": ["--", "--"]}, None, "no row has a mark in both; 2 have an error or no label"),
        ({}, None, "words and plain have no seed in common"),
    ],
)
def test_what_cannot_be_tested_is_null_with_its_reason(tmp_path: Path, marks: Marks, difference: float | None, why: str) -> None:
    plain = better(marks, tmp_path)[0]
    assert (plain.difference, plain.p_value, plain.shown, plain.detectable) == (difference, None, False, None)
    assert plain.why_null is not None
    assert plain.why_null.startswith(why)


def test_a_variant_without_predictions_of_one_seed_is_compared_by_the_others(tmp_path: Path) -> None:
    store, found = evaluated(tmp_path, CLEAR)
    plain, noise = compared(store, {**found, ("plain", 1): None}, BOTH)
    assert (plain.seeds, noise.seeds) == (2, 3)


# --- as rows and in words ---------------------------------------------------------------------------------------------


def test_a_comparison_fills_against_and_p_value(tmp_path: Path) -> None:
    plain = better(CLEAR, tmp_path)[0]
    difference, detectable = plain.metrics("toy", "test")
    assert (difference.metric, difference.variant, difference.against) == ("accuracy_difference", "words", "plain")
    assert (difference.value, difference.p_value, difference.n) == (plain.difference, plain.p_value, 40)
    assert (detectable.metric, detectable.value, detectable.p_value) == ("accuracy_detectable", plain.detectable, None)


def reported(verdicts: Sequence[Verdict], **missing: str) -> Comparisons:
    return Comparisons(verdicts, BOTH, missing)


def test_the_table_says_the_verdict_and_the_smallest_difference_that_would_have_been_shown(tmp_path: Path) -> None:
    verdicts = better(CLEAR, tmp_path)
    plain, noise = comparison_table(reported(verdicts)).rows
    assert plain[:2] == ("words against plain (primary)", "+45.0")
    assert (plain[4], noise[4]) == ("shown: better", "no difference shown")
    assert plain[5] == f"{100 * (verdicts[0].detectable or 0):.1f}"
    assert plain[6:] == ("3", "40")


def test_a_failed_variant_is_said_in_words(tmp_path: Path) -> None:
    verdicts = better({"words": ["11", "11"]}, tmp_path)
    table = comparison_table(reported(verdicts, **{"plain/0": "its training failed: no memory"}))
    assert table.rows[0][1:] == ("–", "–", "–", "not tested", "–", "0", "0")
    assert "words against plain was not tested: words and plain have no seed in common." in table.notes
    assert "plain/0 is in no comparison: its training failed: no memory." in table.notes


SCATTERED = {
    "words": ["1" * right + "0" * (100 - right) for right in (32, 55, 66)],
    "plain": ["1" * right + "0" * (100 - right) for right in (65, 45, 42)],
}
ALONE = SignificanceConfig(primary=WORDS)


def test_where_not_even_100_points_would_have_been_shown_that_is_said_in_words_and_no_number_is_made_up(tmp_path: Path) -> None:
    found = Comparisons(better(SCATTERED, tmp_path, ALONE), ALONE)
    table, said = comparison_table(found), headline(report(METRICS, comparisons=found))
    assert (table.rows[0][4], table.rows[0][5]) == ("no difference shown", "none")
    why = "with 3 seeds and 100 rows that scatter so much not even a difference of 100 points would have been shown"
    assert f"words against plain has no smallest difference: {why} with a probability of 80 %." in table.notes
    assert f"There is no smallest difference to be shown: {why} with a probability of 80%." in said
    assert " is 0.0 points" not in said
    (told,) = to_json(report(METRICS, comparisons=found))["comparisons"]["verdicts"]
    assert (told["detectable"], told["why_undetectable"]) == (None, why)
    assert found.verdicts[0].metrics("toy", "test")[1].value is None


def test_of_two_seeds_the_report_says_why_there_is_no_smallest_difference(tmp_path: Path) -> None:
    found = Comparisons(better({"words": ["1110", "1101"], "plain": ["0000", "0000"]}, tmp_path, ALONE), ALONE)
    why = "two seeds say too little of how students scatter to promise that any difference would have been shown"
    assert f"words against plain has no smallest difference: {why} with a probability of 80 %." in comparison_table(found).notes
    assert f"There is no smallest difference to be shown: {why} with a probability of 80%." in headline(
        report(METRICS, comparisons=found)
    )


def test_rows_that_are_in_no_comparison_are_said(tmp_path: Path) -> None:
    found = Comparisons(better({"words": ["1111--", "111010"], "plain": ["000000", "01-010"]}, tmp_path, ALONE), ALONE)
    assert found.verdicts[0].rows == 3
    notes = comparison_table(found).notes
    assert "3 rows are in no comparison of words and plain: an error or no label in one of them." in notes
    one = Comparisons(better({"words": ["111-"], "plain": ["0000"]}, tmp_path / "one", ALONE), ALONE)
    assert "1 row is in no comparison of words and plain: an error or no label in one of them." in comparison_table(one).notes
    none = Comparisons(better({"words": ["--"], "plain": ["00"]}, tmp_path / "none", ALONE), ALONE)
    assert not any("in no comparison" in note for note in comparison_table(none).notes), "it is the reason why there is no test"


def test_without_a_declared_comparison_the_table_says_how_to_declare_one() -> None:
    assert comparison_table(None).rows == []
    assert "significance.primary" in comparison_table(None).notes[0]


METRICS = [*answers("words", 95, 95, 95), *answers("plain", 50, 50, 50), *answers("noise", 93, 93, 93)]


def test_the_headline_names_the_strongest_control_and_then_the_declared_one(tmp_path: Path) -> None:
    said = headline(report(METRICS, comparisons=reported(better(CLEAR, tmp_path))))
    assert "Against noise, the strongest of 2 controls, words is 2.5 points better: no difference shown (p = " in said
    assert "The declared primary comparison, with plain: 45.0 points better: shown (p " in said
    assert said.count("The smallest difference that this run would have shown with a probability of 80% is ") == 2


def test_the_headline_of_one_seed_says_why_nothing_is_tested(tmp_path: Path) -> None:
    config = SignificanceConfig(primary=WORDS)
    verdicts = better({"words": ["11"], "plain": ["10"]}, tmp_path, config)
    said = headline(report(METRICS, comparisons=Comparisons(verdicts, config)))
    assert "Against plain, its control, words is 50.0 points better; this was not tested, since one seed says nothing" in said


def test_page_markdown_and_json_have_the_comparisons(tmp_path: Path) -> None:
    whole = report(METRICS, comparisons=reported(better(CLEAR, tmp_path)))
    assert "words against plain (primary)" in to_html(whole)
    assert "## Comparisons" in to_markdown(whole)
    told = to_json(whole)
    assert [each["verdict"] for each in told["comparisons"]["verdicts"]] == ["shown: better", "no difference shown"]
    assert told["measures"]["accuracy_detectable"]["high"] == 1
    assert told["measures"]["parameters"]["high"] is None, "JSON knows no infinity"


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "said"),
    [
        ({"variant": "label-only", "against": "attribution"}, None),
        ({"variant": "attribution", "against": "lable-only"}, "significance: 'lable-only' is no variant of training.variants"),
        ({"variant": "attribution", "against": "attribution"}, "expected two variants, got 'attribution' against itself"),
    ],
)
def test_a_comparison_is_of_two_variants_that_are_trained(primary: dict[str, str], said: str | None) -> None:
    data = MINI | {"task": {"type": "planted", "path": "x"}, "significance": {"primary": primary}}
    if said is None:
        assert validate(data, "here").significance is not None
        return
    with pytest.raises(ConfigError, match=said):
        validate(data, "here")


SHUFFLED = {"name": "shuffled", "source": "shuffled", "objective": {"type": "multi_task", "alpha": 0.5}}
OTHERWISE = SHUFFLED | {"objective": {"type": "multi_task", "alpha": 0.9}}


@pytest.mark.parametrize(
    ("added", "others", "is_refused"),
    [
        ([], [], True),
        ([SHUFFLED], [], True),
        ([OTHERWISE], [{"variant": "attribution", "against": "shuffled"}], True),
        ([SHUFFLED], [{"variant": "attribution", "against": "shuffled"}], False),
    ],
    ids=["no control", "not compared", "another objective", "compared"],
)
def test_a_claim_about_attributions_has_their_shuffled_scores_among_its_controls(
    added: list[dict[str, object]], others: list[dict[str, str]], is_refused: bool
) -> None:
    learnt = SHUFFLED | {"name": "attribution", "source": "attribution"}
    training = MINI["training"] | {"variants": [MINI["training"]["variants"][0], learnt, *added]}
    rationales = MINI["rationales"] | {"sources": [*MINI["rationales"]["sources"], {"type": "shuffled"}]}
    significance = {"primary": {"variant": "attribution", "against": "label-only"}, "others": others}
    data = {
        "task": {"type": "planted", "path": "x"},
        "training": training,
        "rationales": rationales,
        "significance": significance,
    }
    if not is_refused:
        assert validate(MINI | data, "here").significance is not None
        return
    with pytest.raises(ConfigError, match="'attribution' learns from attributions .* Add {type: shuffled}"):
        validate(MINI | data, "here")
