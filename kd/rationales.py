"""Soft importance becomes a hard rationale: the words of a row that a student learns to write.

Token scores are pooled to words over *every* segment of the row, so each word has an importance (`kd.spans.pool` has the
laws). Both this and the pooling of a word's occurrences favour some words whatever the teacher knows: sums those of many
pieces and many occurrences. The control `shuffled` is favoured alike.
A rationale is drawn from the *candidates* only: words of the configured roles that the teacher read, without punctuation
and stop words, the same word counted once. Prompt words and option letters are segments of role `prompt`, which is no
role to draw from. Every source of a rationale sees the same candidates, so a control differs in nothing but the choice.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from kd.families.text import NEVER_CUT
from kd.frozen import Frozen
from kd.portions import portion
from kd.rows import Attribution, Example, RationaleRow, RowError, Segment, Span, extended, text_of, widened
from kd.shards import Apply
from kd.spans import Pooling, check_segmenter, pool, pooled, touched, words
from kd.stop_words import folded, says_something

UNEXPLAINED = "none"
"""Model, method and explained answer of rows in a run without a teacher."""
DrawnRole = Literal["context", "question", "premise", "hypothesis", "text", "choice"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that a rationale may hold: the indices of its occurrences in the row's words, and its weight for ranking."""

    occurrences: tuple[int, ...]
    text: str
    weight: float


# --- how many of the ranked candidates ----------------------------------------------------------------------------------


class TopK(Frozen):
    """The k candidates of the largest weight."""

    type: Literal["top_k"] = "top_k"
    k: int = Field(default=5, ge=1)
    """How many words at most."""

    def count(self, weights: Sequence[float]) -> int:
        return min(self.k, len(weights))


class Fraction(Frozen):
    """A share of the row's candidates, rounded up, so that a row with candidates has a rationale."""

    type: Literal["fraction"] = "fraction"
    frac: float = Field(default=0.2, gt=0, le=1)
    """Share of the candidates, in (0, 1]."""

    def count(self, weights: Sequence[float]) -> int:
        return portion(self.frac, len(weights))


class Threshold(Frozen):
    """Every candidate whose weight is at least `share` times the largest weight of the row."""

    type: Literal["threshold"] = "threshold"
    share: float = Field(default=0.5, gt=0, le=1)
    """Share of the row's largest weight, in (0, 1]."""

    def count(self, weights: Sequence[float]) -> int:
        return sum(weight >= self.share * weights[0] for weight in weights)


Selection = Annotated[TopK | Fraction | Threshold, Field(discriminator="type")]


# --- where a rationale comes from: `needs_attributions` says whether that is what a teacher's attribution says ----------


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source chooses from: the row, its candidates in reading order, those that the attribution takes, best first.

    `shuffled` are the candidates as they rank, best first, once the token scores are permuted by a seed.
    """

    row: Attribution
    candidates: Sequence[Candidate]
    taken: Sequence[Candidate]
    shuffled: Callable[[int], Sequence[Candidate]]


Choice = tuple[Sequence[Candidate], str | None]
"""The chosen candidates, and the rationale's text where it is more than these words."""


class AttributionSource(Frozen):
    """The words that the teacher's attribution ranks highest."""

    type: Literal["attribution"] = "attribution"
    needs_attributions: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.type

    def choose(self, offer: Offer) -> Choice:
        return offer.taken, None


class RandomSource(Frozen):
    """As many words as the attribution takes in that row, drawn evenly from the same candidates: a control.

    It draws a word that is long or occurs twice no more often than any other, as an attribution does that knows nothing.
    """

    type: Literal["random"] = "random"
    needs_attributions: ClassVar[bool] = True
    seed: int = Field(default=0, ge=0)
    """Seed of the draw, which is made anew for each row from this and the row's uid."""

    @property
    def name(self) -> str:
        return f"random-{self.seed}" if self.seed else "random"

    def choose(self, offer: Offer) -> Choice:
        draw = random.Random(f"{self.seed}/{offer.row.uid}")
        return draw.sample(offer.candidates, len(offer.taken)), None


class ShuffledSource(Frozen):
    """As many words as the attribution takes in that row, by its own token scores permuted within the row: the control.

    Permuted are the scores of the tokens of the candidates. Then it is pooled, merged and ranked as the attribution is. So
    what the attribution takes more often, for its pieces, its occurrences or its place among equals, this does too, and what
    is left between them is what the teacher knows. A word of weight zero or less fills up where the others are too few.
    """

    type: Literal["shuffled"] = "shuffled"
    needs_attributions: ClassVar[bool] = True
    seed: int = Field(default=0, ge=0)
    """Seed of the permutation, which is drawn anew for each row from this and the row's uid."""

    @property
    def name(self) -> str:
        return f"shuffled-{self.seed}" if self.seed else "shuffled"

    def choose(self, offer: Offer) -> Choice:
        return offer.shuffled(self.seed)[: len(offer.taken)], None


class LlmSource(Frozen):
    """The chain of thought that came with the data; empty where a row has none.

    Its text is the rationale as it stands. The hard mask marks the candidates that occur in it, so that it can be
    measured like the others.
    """

    type: Literal["llm"] = "llm"
    needs_attributions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.type

    def choose(self, offer: Offer) -> Choice:
        said = Segment("text", (offer.row.llm_rationale or "").strip())
        forms = {folded(said.text[span.start : span.end]) for span in words([said])}
        return [candidate for candidate in offer.candidates if folded(candidate.text) in forms], said.text


class NoSource(Frozen):
    """No rationale at all: every row's is empty."""

    type: Literal["none"] = "none"
    needs_attributions: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.type

    def choose(self, _: Offer) -> Choice:
        return (), None


SourceConfig = Annotated[AttributionSource | RandomSource | ShuffledSource | LlmSource | NoSource, Field(discriminator="type")]


# --- the settings that all sources share --------------------------------------------------------------------------------


class PoolConfig(Frozen):
    """How the scores of tokens become the weight of a word.

    The defaults are what the audit says of e-SNLI with a MiniLM classifier (`bench/pooling.py`: 600 rows, 120 of them erased).
    With saliency, for the sums, pieces by their sum and occurrences by their mean, and the defaults: token F1 against the
    highlights 0.554, 0.575 and 0.577, area under precision and recall 0.726, 0.726 and 0.728, and the gain over the strongest
    control, when a rationale is erased, 0.111, 0.140 and 0.133. With input x gradient: 0.479, 0.488 and 0.494; 0.600, 0.600 and
    0.602; 0.006, 0.042 and 0.056. Sums over occurrences were the worst by F1 and by gain whatever the pieces; between the others
    nothing is certain.
    """

    pieces: Pooling = "max"
    """Of the tokens of a word: their sum, their mean, or the one of the largest magnitude. This is the word's importance."""
    occurrences: Pooling = "mean"
    """Of the occurrences of a word that is counted once (`merge_duplicates`), likewise."""


class RationalesConfig(Frozen):
    """How word importance becomes a rationale."""

    roles: tuple[DrawnRole, ...] = ("question", "context", "premise", "hypothesis", "text")
    """Roles of the segments that a rationale may be drawn from."""
    selection: Selection = TopK()
    """How many words. A word of weight zero or less is never taken."""
    rank_by: Literal["magnitude", "signed"] = "magnitude"
    """What a word's weight is, for methods with signed scores. `magnitude`: the absolute value of its pooled score, so
    words that moved the answer either way; `signed`: the pooled score, so only words that speak for it."""
    pool: PoolConfig = PoolConfig()
    """How the scores of a word's tokens and of its occurrences become one."""
    order: Literal["position", "score"] = "position"
    """Order of the words in the rationale's text: as in the input, or the heaviest first."""
    keep_stop_words: bool = False
    """Whether English function words may be chosen. Punctuation never may."""
    merge_duplicates: bool = True
    """Whether the same word, whatever its case, is one candidate: its scores are pooled, it is written once, and all its
    occurrences are marked."""
    sources: tuple[SourceConfig, ...] = (AttributionSource(),)
    """Where rationales come from; each makes a data set of its own."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The stage fails where more than this share of the rows that reach it without an error gets one."""

    @model_validator(mode="after")
    def _names_differ(self) -> "RationalesConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources: expected each once, got {', '.join(names)}; give controls of one type different seeds")
        return self

    def candidates(self, row: Attribution, found: Sequence[Span], importance: Sequence[float]) -> list[Candidate]:
        """The words of a row that any rationale may hold, in reading order. `found` are all its words.

        Of a row that no teacher has read these are all words of the roles. Options are never cut, so they have been read, also
        where a teacher that reads one at a time has tokens of the explained one only.
        """
        read = pool(_token_spans(row), [1.0] * len(row.tokens), found)[0] if row.method != UNEXPLAINED else [1.0] * len(found)
        groups: dict[str | int, list[int]] = {}
        for index, span in enumerate(found):
            word, role = text_of(row, span), row.segments[span.segment].role
            if (read[index] or role in NEVER_CUT) and role in self.roles and says_something(word, self.keep_stop_words):
                groups.setdefault(folded(word) if self.merge_duplicates else index, []).append(index)
        return [
            Candidate(tuple(group), text_of(row, found[group[0]]), self._weight([importance[index] for index in group]))
            for group in groups.values()
        ]

    def units(self, row: RationaleRow, importance: Sequence[float]) -> list[Candidate]:
        """The same of a finished row, with an importance of its words that may be another's."""
        return self.candidates(row, list(map(Span, row.word_segment, row.word_start, row.word_end)), importance)

    def shuffled(self, row: Attribution, found: Sequence[Span], seed: int = 0) -> list[float]:
        """The importance of a row's words, `found`, after the scores of its candidates' tokens were permuted among these."""
        inside = {index for each in self.candidates(row, found, [0.0] * len(found)) for index in each.occurrences}
        tokens = _token_spans(row)
        places = [place for place, own in enumerate(touched(tokens, found)) if any(index in inside for index, _ in own)]
        scores = list(row.scores)
        drawn = random.Random(f"shuffled/{seed}/{row.uid}").sample(places, len(places))
        for place, other in zip(places, drawn, strict=True):
            scores[place] = row.scores[other]
        return pool(tokens, scores, found, self.pool.pieces)[0]

    def control(self, row: RationaleRow) -> list[float]:
        """The same of a finished row, as the source `shuffled` has it."""
        return self.shuffled(row, list(map(Span, row.word_segment, row.word_start, row.word_end)))

    def select(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates of the largest weight, best first; ties go to the earlier position."""
        ranked = by_weight(candidates)
        count = self.selection.count([candidate.weight for candidate in ranked])
        return [candidate for candidate in ranked[:count] if candidate.weight > 0]

    def write(self, chosen: Sequence[Candidate]) -> str:
        """Chosen words as text."""
        ordered = sorted(chosen, key=lambda candidate: candidate.occurrences) if self.order == "position" else chosen
        return " ".join(candidate.text for candidate in ordered)

    def _weight(self, importance: Sequence[float]) -> float:
        weight = pooled([(each, 1.0) for each in importance], self.pool.occurrences)
        return abs(weight) if self.rank_by == "magnitude" else weight


def by_weight(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, the heaviest first; ties go to the earlier position."""
    return sorted(candidates, key=lambda candidate: -candidate.weight)


# --- the stage ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rationalise:
    """The stage's recipe: one source over attributed rows, or over examples where the source needs no attributions."""

    config: RationalesConfig
    source: SourceConfig
    segmenter: str | None = None
    """What must find words where the corpus has text without spaces (`kd.spans.segmenter`); None where it has none."""

    def open(self) -> Apply:
        """The function from rows to rows; there is nothing to load. Raises ConfigError where words are found otherwise here."""
        settings = self.config.model_dump(mode="json", exclude={"sources", "max_error_frac"})
        if self.segmenter is not None:
            check_segmenter(self.segmenter)
            settings["segmenter"] = self.segmenter
        provenance = json.dumps({"source": self.source.model_dump(mode="json")} | settings, separators=(",", ":"))
        return lambda rows, _: [self._rationalise(_explained(row), provenance) for row in rows]

    def _rationalise(self, row: Attribution, provenance: str) -> RationaleRow | RowError:
        if not all(map(math.isfinite, row.scores)):
            return RowError("not_finite", "a score of the attribution is not a finite number")
        found = words(row.segments)
        importance = pool_to_words(row, found, self.config.pool.pieces)
        chosen, text = self.source.choose(self._offer(row, found, importance))
        marked = {index for candidate in chosen for index in candidate.occurrences}
        return extended(
            row,
            RationaleRow,
            word_segment=[span.segment for span in found],
            word_start=[span.start for span in found],
            word_end=[span.end for span in found],
            importance=importance,
            rationale=[index in marked for index in range(len(found))],
            rationale_text=self.config.write(chosen) if text is None else text,
            source=self.source.name,
            provenance=provenance,
        )

    def _offer(self, row: Attribution, found: Sequence[Span], importance: Sequence[float]) -> Offer:
        config = self.config
        candidates = config.candidates(row, found, importance)

        def shuffled(seed: int) -> Sequence[Candidate]:
            return by_weight(config.candidates(row, found, config.shuffled(row, found, seed)))

        return Offer(row, candidates, config.select(candidates), shuffled)


def _explained(row: Example) -> Attribution:
    """The attributed row, or an example as one that no teacher has read: without answers, tokens and scores."""
    if isinstance(row, Attribution):
        return row
    return widened(row, Attribution, model=UNEXPLAINED, method=UNEXPLAINED, explained=UNEXPLAINED)


def pool_to_words(row: Attribution, found: Sequence[Span], how: Pooling = "sum") -> list[float]:
    """The row's token scores as one raw score per word; what falls between the words is left out, and nothing else.

    Raises:
        ValueError: mass was not conserved, which is a defect of this program.
    """
    tokens = _token_spans(row)
    summed, unassigned = pool(tokens, row.scores, found)
    gap = abs(math.fsum([*summed, unassigned]) - math.fsum(row.scores))
    if gap > 1e-6 * math.fsum(map(abs, row.scores)):
        raise ValueError(f"row {row.uid}: pooling tokens to words lost or made a mass of {gap}; expected none")
    return summed if how == "sum" else pool(tokens, row.scores, found, how)[0]


def _token_spans(row: Attribution) -> list[Span]:
    return list(map(Span, row.token_segment, row.token_start, row.token_end))
