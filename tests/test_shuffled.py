"""The control `shuffled`: favoured by pieces, occurrences and places as the attribution is, and by nothing that a teacher knows."""

import dataclasses
import itertools
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.attribution.engine import AttributionConfig, Engine
from kd.evaluation.plausibility import hard_plausibility, shuffled_plausibility
from kd.evaluation.sums import Tally
from kd.loading import load
from kd.rationales import (
    AttributionSource,
    PoolConfig,
    RandomSource,
    RationalesConfig,
    Rationalise,
    ShuffledSource,
    SourceConfig,
    TopK,
)
from kd.rows import Attribution, RationaleRow, Segment, Span
from kd.spans import Pooling, overlap, pool, words
from kd.tasks.planted import Planted, question
from tests import tiny
from tests.test_rationales import attributed, marked, money_row, of_text, rationalised

POOLINGS: list[Pooling] = ["sum", "mean", "max"]
EVERY_POOL = [PoolConfig(pieces=pieces, occurrences=occurrences) for pieces, occurrences in itertools.product(POOLINGS, POOLINGS)]


# --- pooling ----------------------------------------------------------------------------------------------------------------


def in_pieces() -> Attribution:
    """`gold` twice, of one piece each, and `iron` of two: scores 3 and 1, and 2 and -5."""
    row = of_text("gold iron gold", [0.0] * 3)
    tokens, start, end = ["gold", "ir", "on", "gold"], [0, 5, 7, 10], [4, 7, 9, 14]
    return dataclasses.replace(
        row, tokens=tokens, token_segment=[0] * 4, token_start=start, token_end=end, scores=[3.0, 2.0, -5.0, 1.0]
    )


@pytest.mark.parametrize(
    ("how", "importance", "of_gold"),
    [("sum", [3.0, -3.0, 1.0], 4.0), ("mean", [3.0, -1.5, 1.0], 2.0), ("max", [3.0, -5.0, 1.0], 3.0)],
)
def test_pieces_and_occurrences_are_pooled_each_as_the_config_says(how: Pooling, importance: list[float], of_gold: float) -> None:
    row = rationalised(in_pieces(), RationalesConfig(pool=PoolConfig(pieces=how, occurrences="sum")))
    assert row.importance == importance
    config = RationalesConfig(pool=PoolConfig(pieces=how, occurrences=how))
    assert [unit.weight for unit in config.units(row, row.importance)] == [of_gold, abs(importance[1])]
    signed = config.model_copy(update={"rank_by": "signed"})
    assert [unit.weight for unit in signed.units(row, row.importance)] == [of_gold, importance[1]]


# --- what is shuffled -------------------------------------------------------------------------------------------------------


def test_the_scores_of_candidates_change_places_and_no_others_do() -> None:
    row, config = money_row(), RationalesConfig()
    found = words(row.segments)
    mixed = config.shuffled(row, found)
    places = [index for each in config.candidates(row, found, row.scores) for index in each.occurrences]
    assert sorted(mixed[index] for index in places) == sorted(row.scores[index] for index in places)
    others = set(range(len(found))) - set(places)
    assert [mixed[index] for index in others] == [row.scores[index] for index in others]
    orders = {tuple(config.shuffled(row, found, seed)[index] for index in places) for seed in range(500)}
    assert len(orders) == 24, "every order of four scores"


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 99), st.sampled_from(EVERY_POOL))
def test_as_many_words_are_taken_from_the_same_candidates(scores: list[int], k: int, seed: int, pool: PoolConfig) -> None:
    row = of_text(" ".join(f"w{index % 7}" for index in range(len(scores))), [float(score) for score in scores])
    config = RationalesConfig(selection=TopK(k=k), rank_by="signed", pool=pool)
    wanted, control = rationalised(row, config), rationalised(row, config, ShuffledSource(seed=seed))
    assert len(control.rationale_text.split()) == len(wanted.rationale_text.split())
    assert control.importance == wanted.importance, "which is the attribution's"
    indices = {index for each in config.units(control, control.importance) for index in each.occurrences}
    assert {index for index, hard in enumerate(control.rationale) if hard} <= indices


def test_it_depends_on_scores_uid_and_seed() -> None:
    text = " ".join(f"w{index}" for index in range(40))

    def drawn(uid: str, seed: int, scores: list[float]) -> list[str]:
        return marked(rationalised(of_text(text, scores, uid=uid), source=ShuffledSource(seed=seed)))

    rising, falling = [float(i + 1) for i in range(40)], [float(40 - i) for i in range(40)]
    assert drawn("a", 0, rising) == drawn("a", 0, rising)
    assert len({tuple(drawn(*case)) for case in (("a", 0, rising), ("b", 0, rising), ("a", 1, rising), ("a", 0, falling))}) == 4


def test_its_names_are_those_of_folders() -> None:
    assert [ShuffledSource(seed=seed).name for seed in (0, 2)] == ["shuffled", "shuffled-2"]


# --- an importance that knows nothing ---------------------------------------------------------------------------------------


def blind(number: int) -> Attribution:
    """Eight words, one of them twice and one of four pieces; each token's score is noise. Marked are these two by a person."""
    draw = random.Random(f"blind/{number}")
    text = ["again", "again", "longword", *(f"w{place}" for place in range(5))]
    draw.shuffle(text)
    row = attributed([Segment("question", " ".join(text))], [0.0] * len(text), uid=f"r{number}")
    spans = []
    for word in words(row.segments):
        size = 2 if word.end - word.start == len("longword") else word.end - word.start
        spans += [Span(0, start, start + size) for start in range(word.start, word.end, size)]
    return dataclasses.replace(
        row,
        evidence=[word for word in words(row.segments) if word.end - word.start > 2],
        tokens=["piece"] * len(spans),
        token_segment=[0] * len(spans),
        token_start=[span.start for span in spans],
        token_end=[span.end for span in spans],
        scores=[draw.random() for _ in spans],
    )


def hits(rows: list[Attribution], config: RationalesConfig, source: SourceConfig) -> list[float]:
    """For each row whether the rationale touches what is marked."""
    made = Rationalise(config, source).open()(rows, Counter())
    done = [row for row in made if isinstance(row, RationaleRow)]
    assert len(done) == len(rows)
    return [hard_plausibility([row], config.units).tallies["evidence_hit_rate"].total for row in done]


def interval(one: list[float], other: list[float]) -> tuple[float, float]:
    """The 99.9 % interval of the mean difference over rows: a dozen of them are looked at below."""
    found = Tally.of([a - b for a, b in zip(one, other, strict=True)])
    assert found.mean is not None
    assert found.standard_error is not None
    return found.mean - 3.29 * found.standard_error, found.mean + 3.29 * found.standard_error


@pytest.mark.parametrize("pool", EVERY_POOL[::2], ids=lambda pool: f"{pool.pieces}-{pool.occurrences}")
def test_noise_does_not_beat_its_own_scores_shuffled_however_they_are_pooled(pool: PoolConfig) -> None:
    config = RationalesConfig(selection=TopK(k=1), pool=pool)
    rows = [blind(number) for number in range(500)]
    noise, shuffled = hits(rows, config, AttributionSource()), hits(rows, config, ShuffledSource())
    low, high = interval(noise, shuffled)
    assert low < 0 < high
    made = [row for row in Rationalise(config, AttributionSource()).open()(rows, Counter()) if isinstance(row, RationaleRow)]
    single = config.model_copy(update={"merge_duplicates": False})
    sums = shuffled_plausibility(made, config.units, single.units, config.control)
    assert sums.tallies["evidence_hit_shuffled"].total == sum(shuffled), "the audit draws what the source draws"


def test_an_untrained_teacher_beats_random_words_by_their_pieces_and_not_its_own_scores_shuffled(tmp_path: Path) -> None:
    """With a vocabulary this small words have many pieces; a person has marked the words of six and more."""
    spec = tiny.SPEC.model_copy(update={"tokenizer": "unigram", "vocab_size": 60})
    family = tiny.family(load(tiny.tiny_source(tmp_path, spec), "cpu"), max_input_tokens=256)
    asked = [Planted().example(question(0, "train", number), "train") for number in range(150)]
    examples = [tiny.example(row.segments[0].text, uid=row.uid) for row in asked]
    found = Engine(AttributionConfig(answers=False), family).attribute(examples, Counter())
    rows = [with_long_words_marked(row) for row in found if isinstance(row, Attribution)]
    config = RationalesConfig(roles=("question",), selection=TopK(k=1), pool=PoolConfig(pieces="sum", occurrences="sum"))
    pieces, importance = zip(*(pair for row in rows for pair in by_pieces(row, config)), strict=True)
    assert statistics.correlation(pieces, importance) > 0.7
    by_teacher, shuffled, drawn = (
        hits(rows, config, source) for source in (AttributionSource(), ShuffledSource(), RandomSource())
    )
    assert interval(by_teacher, drawn)[0] > 0.2
    low, high = interval(by_teacher, shuffled)
    assert low < 0 < high


def with_long_words_marked(row: Attribution) -> Attribution:
    tokens = list(map(Span, row.token_segment, row.token_start, row.token_end))
    sizes = [(word, sum(overlap(token, word) > 0 for token in tokens)) for word in words(row.segments, ["question"])]
    return dataclasses.replace(row, evidence=[word for word, size in sizes if size >= 6])


def by_pieces(row: Attribution, config: RationalesConfig) -> list[tuple[float, float]]:
    """How many pieces each candidate has, and its weight."""
    tokens, found = list(map(Span, row.token_segment, row.token_start, row.token_end)), words(row.segments)
    importance = pool(tokens, row.scores, found)[0]
    return [
        (float(sum(overlap(token, found[index]) > 0 for token in tokens for index in each.occurrences)), each.weight)
        for each in config.candidates(row, found, importance)
    ]


@pytest.mark.parametrize("how", ["sum", "max"])
def test_noise_beats_random_words_where_words_repeat_or_have_pieces(how: Pooling) -> None:
    config = RationalesConfig(selection=TopK(k=1), pool=PoolConfig(pieces=how, occurrences=how))
    rows = [blind(number) for number in range(500)]
    assert interval(hits(rows, config, AttributionSource()), hits(rows, config, RandomSource()))[0] > 0.1
