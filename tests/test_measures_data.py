"""Every measure on the planted corpus, where its value is known, and on the public data, where they are there."""

import dataclasses
import gzip
import json
import os
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kd.audit_rows import Erasure, Measured
from kd.evaluation.agreement import AGREEMENT, agreement
from kd.evaluation.auditing import WHOLE, MeasureRationales, Reported, audit_sums
from kd.evaluation.faithfulness import measure
from kd.evaluation.faithfulness_sums import faithfulness_sums
from kd.evaluation.metrics import About
from kd.evaluation.overlap import TEXT, WORDS, Slice, label_overlap, text_overlap
from kd.evaluation.plausibility import HARD, SOFT, hard_plausibility, soft_plausibility
from kd.evaluation.sums import Result, Why
from kd.rationales import Candidate, Offer, RandomSource, RationalesConfig, TopK
from kd.rows import Example, RationaleRow, RowError, Span, extended
from kd.spans import overlap, words
from kd.tasks.base import TaskConfig
from kd.tasks.commonsense_qa import CommonsenseQA
from kd.tasks.esnli import ESNLI
from kd.tasks.planted import Planted, question
from kd.tasks.tweet_sentiment import TweetSentiment
from tests.tiny_erasing import eraser
from tests.tiny_measures import by_name, units_of, values

SHARED = Path(os.environ.get("KD_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
# Not merged: the scores of a word that occurs twice are summed, so that one who looks anywhere would take it more often.
IN_QUESTION = RationalesConfig(selection=TopK(k=1), merge_duplicates=False)
WITH_OPTIONS = RationalesConfig(
    roles=("question", "premise", "hypothesis", "text", "choice"), selection=TopK(k=5), merge_duplicates=False
)

ABOUT = About("rationales", "audit", "attribution", None, "toy", "train")
RANKED = Reported(ranked=True, is_text=False, explained="gold")
CHAINS = Reported(ranked=False, is_text=True, explained="gold")

Look = Callable[[Example, Span], float]


def attributed(example: Example, config: RationalesConfig, look: Look) -> RationaleRow:
    """A row whose words have the importance that `look` gives them; its teacher answers the first option."""
    found = words(example.segments)
    importance = [look(example, span) for span in found]
    texts = [example.segments[span.segment].text[span.start : span.end] for span in found]
    segment, start, end = ([span.segment for span in found], [span.start for span in found], [span.end for span in found])
    own = example.label_set[0]
    row = extended(
        example,
        RationaleRow,
        model="toy",
        method="made up",
        explained="gold",
        explained_answer=example.target,
        generated=own,
        generated_cut=False,
        ranked=own,
        choice_logprobs=[],
        target_logprob=None,
        tokens=texts,
        token_segment=segment,
        token_start=start,
        token_end=end,
        scores=importance,
        completeness_gap=None,
        truncated_tokens=0,
        fold=0,
        rationale=[False] * len(found),
        rationale_text="",
        source="attribution",
        provenance="{}",
        word_segment=segment,
        word_start=start,
        word_end=end,
        importance=importance,
    )
    chosen = {index for each in config.select(units_of(config, row, importance)) for index in each.occurrences}
    row.rationale[:] = [index in chosen for index in range(len(found))]
    return row


def on_evidence(example: Example, span: Span) -> float:
    return float(any(overlap(span, marked) for marked in example.evidence))


def on_answer(example: Example, span: Span) -> float:
    segment = example.segments[span.segment]
    return float(segment.role == "choice" and segment.text == example.target)


def on_nothing(example: Example, span: Span) -> float:
    return random.Random(f"{example.uid}/{span}").random()


def units(config: RationalesConfig) -> Callable[[RationaleRow, Sequence[float]], Sequence[Candidate]]:
    return lambda row, importance: units_of(config, row, importance)


def plausible(rows: Sequence[RationaleRow], config: RationalesConfig) -> dict[str, Result]:
    unmerged = config.model_copy(update={"merge_duplicates": False})
    hard, soft = hard_plausibility(rows, units(config)), soft_plausibility(rows, units(unmerged))
    return by_name(hard.results(HARD) + soft.results(SOFT))


def planted(look: Look, config: RationalesConfig, rows: int = 200) -> list[RationaleRow]:
    task = Planted()
    return [attributed(task.example(question(0, "train", number), "train"), config, look) for number in range(rows)]


def at_random(row: RationaleRow, config: RationalesConfig) -> RationaleRow:
    """The row with as many words drawn from its candidates as a ranking takes."""
    candidates = config.units(row, row.importance)
    chosen, _ = RandomSource().choose(Offer(row, candidates, config.select(candidates), lambda _: []))
    marked = {index for each in chosen for index in each.occurrences}
    return dataclasses.replace(row, rationale=[index in marked for index in range(len(row.rationale))])


def test_a_teacher_that_looks_at_the_planted_cue_alone_has_every_known_value() -> None:
    rows = planted(on_evidence, IN_QUESTION)
    found = plausible(rows, IN_QUESTION)
    assert {found[name].value for name in ("token_f1", "iou_f1", "auprc")} == {1.0}
    candidates = [len(units_of(IN_QUESTION, row, row.importance)) for row in rows]
    chance = sum(1 / n for n in candidates) / len(rows)
    assert found["token_f1_chance"].value == pytest.approx(chance)
    assert found["iou_f1_chance"].value == pytest.approx(chance, abs=0.02)
    quoted = label_overlap(rows, units(WITH_OPTIONS), 1)[Slice("gold", "gold", "in")].results(WORDS)
    assert values(quoted)["overlap_any"] == 0, "a cue is no word of an answer"
    same = values(agreement(rows, [row.importance for row in rows], units(IN_QUESTION), 1).results(AGREEMENT))
    assert (same["topk_overlap"], same["spearman"], same["kendall"]) == (1, pytest.approx(1), pytest.approx(1))


def test_a_teacher_that_looks_at_the_gold_option_alone_quotes_it_in_every_row() -> None:
    rows = planted(on_answer, WITH_OPTIONS)
    every, options = quoted_by_chance(rows)
    for k in (1, 2):  # a planted option is one word, so no second one has a weight
        found = values(label_overlap(rows, units(WITH_OPTIONS), k)[Slice("gold", "gold", "in")].results(WORDS))
        for name in ("overlap_any", "overlap_top1", "overlap_all"):
            assert found[name] == 1
            assert found[f"{name}_chance"] == pytest.approx(every)
            assert found[f"{name}_option_chance"] == pytest.approx(options)


def quoted_by_chance(rows: Sequence[RationaleRow]) -> tuple[float, float]:
    """The mean share of the answer among the words that one is drawn from: all of them, and those of the options."""
    found = [[unit.text for unit in units_of(WITH_OPTIONS, row, row.importance)] for row in rows]
    every = [texts.count(row.target or "") / len(texts) for row, texts in zip(rows, found, strict=True)]
    return statistics.fmean(every), statistics.fmean(row.label_set.count(row.target or "") / len(row.label_set) for row in rows)


def test_a_teacher_that_looks_anywhere_scores_its_chance() -> None:
    found = plausible(planted(on_nothing, IN_QUESTION, 600), IN_QUESTION)
    for name in ("token_f1", "iou_f1", "auprc"):
        value, error = found[name].value, (found[name].ci_high or 0.0) - (found[name].value or 0.0)
        assert value == pytest.approx(found[f"{name}_chance"].value, abs=2 * error)


def test_planted_chains_of_thought_name_the_answer_and_no_other() -> None:
    rows = planted(on_nothing, WITH_OPTIONS)
    said = values(text_overlap(rows, keep_stop_words=False)[Slice("llm", "gold", "in")].results(TEXT))
    assert {name: said[name] for name in ("cot_any", "cot_all", "cot_whole", "cot_any_chance")} == {
        "cot_any": 1,
        "cot_all": 1,
        "cot_whole": 1,
        "cot_any_chance": 0.25,
    }


def records(path: str) -> list[dict[str, Any]]:
    with gzip.open(SHARED / f"{path}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(1000), strict=False)]


@needs_shared_data
@pytest.mark.parametrize(
    ("task", "path"),
    [
        (CommonsenseQA(), "cqa/train"),
        (ESNLI(), "esnli/dev_highlights"),
        (ESNLI(), "esnli/train_highlights"),
        (TweetSentiment(), "tweet_sentiment_spans/train"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_on_public_data_a_teacher_that_looks_anywhere_scores_its_chance_and_one_at_the_evidence_far_more(
    task: TaskConfig, path: str
) -> None:
    examples = [task.example(record, "train") for record in records(path)]
    blind = [attributed(each, WITH_OPTIONS, on_nothing) for each in examples if each.error is None]
    seeing = [attributed(each, WITH_OPTIONS, on_evidence) for each in examples if each.error is None]
    by_chance, found = plausible(blind, WITH_OPTIONS), plausible(seeing, WITH_OPTIONS)
    marked = sum(bool(each.evidence) for each in examples)
    assert 0 < found["auprc"].n <= marked
    assert found["auprc"].left_out.get(Why.NO_EVIDENCE, 0) == len(blind) - marked
    merged = WITH_OPTIONS.model_copy(update={"merge_duplicates": True})
    drawn = plausible([at_random(row, merged) for row in blind], merged)
    for name in ("token_f1", "iou_f1", "auprc"):
        error = (by_chance[name].ci_high or 0.0) - (by_chance[name].value or 0.0)
        assert by_chance[name].value == pytest.approx(by_chance[f"{name}_chance"].value, abs=2 * error)
        assert drawn[name].value == pytest.approx(drawn[f"{name}_chance"].value, abs=2 * error)
        assert (found[name].value or 0.0) > (by_chance[name].ci_high or 1.0)
    both = agreement(blind, [row.importance for row in seeing], units(WITH_OPTIONS), 5).results(AGREEMENT)
    assert all(result.value is not None for result in both)


NOT_IN_INPUT, NO_TEXT = "has an answer of which no word is in the input", "has no chain of thought"


@needs_shared_data
@pytest.mark.parametrize(
    ("task", "path", "quoted", "said", "echoed"),
    [
        (CommonsenseQA(), "cqa/train", None, None, True),
        (ESNLI(), "esnli/dev_highlights", NOT_IN_INPUT, NO_TEXT, True),
        (ESNLI(), "esnli/dev", NOT_IN_INPUT, None, True),
        (TweetSentiment(), "tweet_sentiment_spans/train", NOT_IN_INPUT, NO_TEXT, False),
    ],
    ids=["cqa", "esnli", "esnli-llm", "tweets"],
)
def test_on_public_data_every_measure_has_a_value_or_the_reason_why_not(
    task: TaskConfig, path: str, quoted: str | None, said: str | None, echoed: bool
) -> None:
    examples = [task.example(record, "train") for record in records(path)[:300]]
    rows = [attributed(each, IN_QUESTION, on_nothing) for each in examples if each.error is None]
    for reported, k in ((RANKED, 5), (CHAINS, None)):
        own, mixed = IN_QUESTION.units, (IN_QUESTION.control, WITH_OPTIONS.control)
        recipe = MeasureRationales(own, own, WITH_OPTIONS.units, *mixed, k, reported.is_text, False, task.judge)
        found = audit_sums(row for row in recipe.open()(rows, Counter()) if isinstance(row, Measured))
        metrics, nulls = found.metrics(ABOUT, reported), found.nulls(reported)
        assert {row.metric for row in metrics if row.value is None} == nulls.keys()
        whole = {measure.name for measure in reported.measures(WHOLE)}
        assert whole & nulls.keys() == whole & {"completeness_gap_nats"}, "made-up scores claim no sum"
        for name, why in [("overlap_any:gold/gold/in/all", quoted), *([("cot_any:llm/gold/in/all", said)] if k is None else [])]:
            assert (name in nulls) == (why is not None)
            assert why is None or why in nulls[name]
    erased = measure(rows[:100], eraser(IN_QUESTION), by_length, Counter())
    nulls = faithfulness_sums(row for row in erased if isinstance(row, Erasure)).nulls()
    lexical = {f"{name}:lexical" for name in ("comprehensiveness", "sufficiency", "comprehensiveness_gain", "sufficiency_gain")}
    assert nulls.keys() == (set() if echoed else lexical)


def by_length(rows: Sequence[Example], _: Counter[str]) -> list[float | RowError]:
    """A made-up teacher that is the surer the more words it reads."""
    return [1 - 1 / (1 + len(words(row.segments))) for row in rows]


@needs_shared_data
def test_chains_of_thought_hold_the_answer_of_commonsense_qa_as_often_as_published() -> None:
    task = CommonsenseQA()
    rows = [attributed(task.example(record, "train"), WITH_OPTIONS, on_nothing) for record in records("cqa/train")]
    said = by_name(text_overlap(rows, keep_stop_words=False)[Slice("llm", "gold", "in")].results(TEXT))
    assert said["cot_whole"].value == pytest.approx(0.715, abs=0.03), "71.5 % of all 9,741 rows"
    blind = by_name(label_overlap(rows, units(WITH_OPTIONS), 5)[Slice("gold", "gold", "in")].results(WORDS))
    for name in ("overlap_any", "overlap_top1", "overlap_all"):
        error = (blind[name].ci_high or 0.0) - (blind[name].value or 0.0)
        assert blind[name].value == pytest.approx(blind[f"{name}_chance"].value, abs=2 * error)
