"""Do rationales quote the answer? Where the options are part of the input, the words that decide may be the answer's own.

The paper (arXiv 2409.12586) says that in 68 % of cases the extracted tokens are part of the ground truth where labels are part
of the input. Its abstract is all that is public: data set, k, filters and formula are unknown. All of the following is ours:

- A word belongs to an answer where it is one of the answer's words, whatever its case and wherever it stands, in the question
  too. Only words that a rationale may hold count (`kd/evaluation/units.py`): no punctuation, and no stop words unless kept.
- Taken are the k heaviest words with a weight above zero; where a source ranks nothing, the words of its rationale.
- Three shares of rows: any of the taken words belongs to the answer, the first one does, all of them do. A row that takes
  nothing is in none of them.
- Chance: as many words drawn evenly, without replacement, from those that could have been taken: a source that ranks nothing
  takes words of the roles that rationales come from, the ranking those of the options too. Then from the options' words alone.
- Beside the ranking stands the same ranking, its token scores permuted among those of the words that could have been taken.
- A row whose answer has no word in the input is left out: labels are no part of its input. Not so with a chain of thought, which
  may name any answer.

Under `explained: gold` the gradient favours the gold option's own words, so the slices are told apart: which answer was
explained, whose words are looked for, and with the options' words or without (those that stand nowhere else; the k heaviest are
then taken from the rest). Whether the model that gave the rationale was right follows from the row (`kd/evaluation/auditing.py`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kd.evaluation.sums import Finding, Findings, Measure, Sums, Why, add_up
from kd.evaluation.units import Shuffled, Unit, Units, heaviest, is_held, ranked
from kd.rows import RationaleRow, Segment
from kd.spans import words
from kd.stop_words import folded, says_something

_OURS = "ours; after the analysis in arXiv 2409.12586"


def _beside_chance(name: str, meaning: str, source: str, *drawn: str) -> Iterator[Measure]:
    """A share of rows, then the same for what may be drawn at random instead; `source` says how that is reckoned."""
    yield Measure(name, 0, 1, True, "rows", f"share of rows {meaning}", _OURS)
    for ending, what in zip(("chance", "option_chance", "shuffled"), drawn, strict=False):
        yield Measure(f"{name}_{ending}", 0, 1, True, "rows", f"the same for {what}", source)


_PERMUTED = "the ranking's token scores permuted"
_AS_MANY = ("hypergeometric, or a draw", "as many random words", "random words of the options", _PERMUTED)
_ONE = ("hypergeometric, or a draw", "a random word", "a random word of the options", _PERMUTED)
WORDS = (
    *_beside_chance("overlap_any", "in which a word of the k belongs to the answer", *_AS_MANY),
    *_beside_chance("overlap_top1", "in which the heaviest word belongs to the answer", *_ONE),
    *_beside_chance("overlap_all", "in which all of the k words belong to the answer", *_AS_MANY),
)
"""Measures of the words of a rationale. More overlap is not better in itself: it says what a rationale is made of."""
_AN_OPTION = ("mean over the row's options, put in place of the answer", "a random option")
TEXT = (
    *_beside_chance("cot_any", "whose chain of thought has a word of the answer", *_AN_OPTION),
    *_beside_chance("cot_all", "whose chain of thought has all words of the answer", *_AN_OPTION),
    *_beside_chance("cot_whole", "whose chain of thought has the answer as it stands", *_AN_OPTION),
)
"""Measures of a chain of thought: the words that count are the same, but it is a text of any length, so nothing is ranked."""


@dataclass(frozen=True)
class Slice:
    """Which rows and which of their words.

    Args:
        explained: which answer was explained; `llm` for a chain of thought. answer: whose words are looked for: the label's, or
            those of the answer of the model that gave the rationale. options: whether words that stand in the options alone
            may be taken.
    """

    explained: str
    answer: Literal["gold", "predicted"]
    options: Literal["in", "out"]


BySlice = Mapping[Slice, Sums]


def label_overlap(
    rows: Sequence[RationaleRow],
    units: Units,
    k: int | None,
    drawn_from: Units | None = None,
    shuffled: Shuffled | None = None,
) -> dict[Slice, Sums]:
    """Sums for `WORDS` in every slice that the rows fall into.

    Args:
        rows: of one source. units: the words in which the answer is looked for, those of the options among them: add the role
            `choice`, and do not merge them where they are ranked (see `kd/evaluation/plausibility.py`).
        k: how many of the heaviest of these are taken; None takes the words of the rationale, which no source but the
            attribution ranks. drawn_from: the words that such a source could have taken; None for `units`. shuffled: the
            importance that the permuted scores of a ranking give to a row's words; None where nothing is ranked.
    """
    found = _found(rows, units)
    own = found if drawn_from is None else _found(rows, drawn_from)
    mixed = {row.uid: ranked(units(row, shuffled(row))) for row in rows if shuffled and row.error is None}
    return _sliced(
        [(row, row.explained, teachers_answer(row)) for row in rows],
        ("in", "out"),
        WORDS,
        lambda row, answer, options: _words_of(row, answer, found[row.uid], own[row.uid], mixed.get(row.uid), options, k),
    )


def text_overlap(rows: Sequence[RationaleRow], keep_stop_words: bool) -> dict[Slice, Sums]:
    """Sums for `TEXT`: the chain of thought that came with the data; the model is the one that wrote it (`llm_label`). Of an
    answer's words those count that a rationale might hold: stop words only where they are kept."""
    return _sliced(
        [(row, "llm", row.llm_label) for row in rows],
        ("in",),
        TEXT,
        lambda row, answer, _: _text_of(row, answer, keep_stop_words),
    )


def teachers_answer(row: RationaleRow) -> str | None:
    """The teacher's own answer: the one that it ranks first, or generates where there is nothing to rank."""
    return row.generated if row.ranked is None else row.ranked


def _found(rows: Sequence[RationaleRow], units: Units) -> dict[str, Sequence[Unit]]:
    """The units of a shard's rows by uid, once for all slices."""
    return {row.uid: units(row, row.importance) for row in rows if row.error is None}


_Told = tuple[RationaleRow, str, str | None]
"""A row, which answer was explained, and the answer of the model that gave the rationale."""


def _sliced(
    told: Sequence[_Told],
    options: Sequence[Literal["in", "out"]],
    measures: Sequence[Measure],
    of_row: Callable[[RationaleRow, str, str], Findings],
) -> dict[Slice, Sums]:
    pieces: dict[Slice, list[RationaleRow]] = {}
    for row, explained, _ in told:
        for option in options:
            pieces.setdefault(Slice(explained, "gold", option), []).append(row)
            pieces.setdefault(Slice(explained, "predicted", option), []).append(row)
    owns = {row.uid: own for row, _, own in told}

    def finder(piece: Slice) -> Callable[[RationaleRow], Findings]:
        def find(row: RationaleRow) -> Findings:
            answer = row.target if piece.answer == "gold" else owns[row.uid]
            if answer is None:
                return Why.NO_LABEL if piece.answer == "gold" else Why.NO_ANSWER
            return of_row(row, answer, piece.options)

        return find

    return {piece: add_up(inside, measures, finder(piece)) for piece, inside in pieces.items()}


# --- the words of a rationale -------------------------------------------------------------------------------------------


def _words_of(
    row: RationaleRow,
    answer: str,
    found: Sequence[Unit],
    own: Sequence[Unit],
    mixed: Sequence[Unit] | None,
    options: str,
    k: int | None,
) -> Findings:
    """What one row says: `found` are all words in which the answer may stand, `own` those that may be taken, `mixed` the same
    as the permuted scores rank them."""
    forms = _forms(answer)
    if not any(folded(unit.text) in forms for unit in found):
        return Why.ANSWER_NOT_IN_INPUT
    asked = own if options == "in" else [unit for unit in own if not _only_in_options(row, unit)]
    taken = [unit for unit in asked if is_held(row, unit)] if k is None else heaviest(asked, k)
    marks = [folded(unit.text) in forms for unit in taken]
    right = sum(folded(unit.text) in forms for unit in asked)
    first = bool(marks and marks[0])
    return {
        "overlap_any": float(any(marks)),
        "overlap_any_chance": any_by_chance(len(asked), right, len(taken)),
        "overlap_top1": Why.UNRANKED if k is None else float(first),
        "overlap_top1_chance": Why.UNRANKED if k is None else all_by_chance(len(asked), right, min(1, len(taken))),
        "overlap_all": float(bool(marks) and all(marks)),
        "overlap_all_chance": all_by_chance(len(asked), right, len(taken)),
        **_of_options(row, forms, found, len(taken), options, k),
        **_of_shuffled(row, forms, mixed, len(taken), options),
    }


def _of_shuffled(
    row: RationaleRow, forms: set[str], mixed: Sequence[Unit] | None, taken: int, options: str
) -> dict[str, Finding]:
    """What as many words reach, the first of those that the permuted scores rank."""
    names = [measure.name for measure in WORDS if measure.name.endswith("shuffled")]
    if mixed is None:
        return dict.fromkeys(names, Why.UNRANKED)
    there = [unit for unit in mixed if options == "in" or not _only_in_options(row, unit)]
    marks = [folded(unit.text) in forms for unit in there[:taken]]
    return dict(zip(names, (float(any(marks)), float(marks[:1] == [True]), float(bool(marks) and all(marks))), strict=True))


def _of_options(
    row: RationaleRow, forms: set[str], found: Sequence[Unit], taken: int, options: str, k: int | None
) -> dict[str, Finding]:
    """The chance levels of random words of the options: no more of them than there are."""
    names = [measure.name for measure in WORDS if measure.name.endswith("option_chance")]
    inside = [unit for unit in found if any(_is_option(row, index) for index in unit.occurrences)]
    if options == "out" or not inside:
        return dict.fromkeys(names, Why.OPTIONS_LEFT_OUT if options == "out" else Why.NO_OPTIONS)
    right, drawn = sum(folded(unit.text) in forms for unit in inside), min(taken, len(inside))
    first: Finding = Why.UNRANKED if k is None else all_by_chance(len(inside), right, min(1, drawn))
    chances = (any_by_chance(len(inside), right, drawn), first, all_by_chance(len(inside), right, drawn))
    return dict(zip(names, chances, strict=True))


def any_by_chance(n: int, right: int, drawn: int) -> float:
    """Probability that one or more of `drawn` words out of `n`, without replacement, is one of the `right` ones."""
    return 1 - math.comb(n - right, drawn) / math.comb(n, drawn)


def all_by_chance(n: int, right: int, drawn: int) -> float:
    """Probability that all of `drawn` words are among the `right` ones; zero where none is drawn."""
    return math.comb(right, drawn) / math.comb(n, drawn) if drawn else 0.0


def _is_option(row: RationaleRow, index: int) -> bool:
    return row.segments[row.word_segment[index]].role == "choice"


def _only_in_options(row: RationaleRow, unit: Unit) -> bool:
    return all(_is_option(row, index) for index in unit.occurrences)


# --- a chain of thought -------------------------------------------------------------------------------------------------


def _text_of(row: RationaleRow, answer: str, keep_stop_words: bool) -> Findings:
    text = row.llm_rationale or ""
    if not text.strip():
        return Why.NO_TEXT
    if not _wanted(answer, keep_stop_words):
        return Why.ANSWER_SAYS_NOTHING
    own = _in_text(text, answer, keep_stop_words)
    options = [_in_text(text, option, keep_stop_words) for option in row.label_set]
    found_in: dict[str, Finding] = {}
    for place, name in enumerate(("cot_any", "cot_all", "cot_whole")):
        found_in[name] = float(own[place])
        chances = [option[place] for option in options]
        found_in[f"{name}_chance"] = sum(chances) / len(chances) if chances else Why.NO_OPTIONS
    return found_in


def _in_text(text: str, answer: str, keep_stop_words: bool) -> tuple[bool, bool, bool]:
    """Whether a text has any of an answer's words that count, all of them, and the answer as it stands, in any case."""
    wanted, there = _wanted(answer, keep_stop_words), _forms(text)
    return bool(wanted & there), bool(wanted) and wanted <= there, folded(answer.strip()) in folded(text)


def _wanted(answer: str, keep_stop_words: bool) -> set[str]:
    """The answer's words that count."""
    return {form for form in _forms(answer) if says_something(form, keep_stop_words)}


def _forms(text: str) -> set[str]:
    return {folded(text[span.start : span.end]) for span in words([Segment("text", text)])}
