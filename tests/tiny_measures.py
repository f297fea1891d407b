"""Rows for the tests of measures: the words of a row, their importance, and what people marked."""

from collections.abc import Sequence

from kd.evaluation.sums import Result
from kd.rationales import Candidate, RationalesConfig
from kd.rows import RationaleRow, RowError, Segment, Span, text_of
from kd.spans import words

SINGLE_WORDS = RationalesConfig(
    roles=("question", "premise", "hypothesis", "text", "choice"), keep_stop_words=True, merge_duplicates=False
)
"""Every word is a unit, as in ERASER; only punctuation is not."""


def rationale_row(
    *parts: tuple[str, str],
    importance: Sequence[float] | None = None,
    chosen: Sequence[str] = (),
    evidence: Sequence[tuple[int, str]] = (),
    target: str | None = None,
    ranked: str | None = None,
    explained: str = "gold",
    llm: tuple[str | None, str | None] = (None, None),
    uid: str = "r",
    error: RowError | None = None,
) -> RationaleRow:
    """A row of `(role, text)` segments that was read word by word; its options are its label set.

    Every word that is in `chosen` is in the rationale. `evidence` are pieces of a segment's text, by its number.
    """
    segments = [Segment(*part) for part in parts]
    found = words(segments)
    scores = [0.0] * len(found) if importance is None else list(importance)
    texts = [segments[span.segment].text[span.start : span.end] for span in found]
    places = [(number, segments[number].text.index(piece), len(piece)) for number, piece in evidence]
    return RationaleRow(
        uid=uid,
        error=error,
        task="toy",
        split="train",
        segments=segments,
        target=target,
        label_set=[segment.text for segment in segments if segment.role == "choice"],
        evidence=[Span(number, start, start + length) for number, start, length in places],
        llm_rationale=llm[0],
        llm_label=llm[1],
        model="toy",
        method="saliency",
        explained=explained,
        explained_answer=target if explained == "gold" else ranked,
        generated=ranked,
        generated_cut=False,
        ranked=ranked,
        choice_logprobs=[],
        target_logprob=0.0,
        tokens=texts,
        token_segment=[span.segment for span in found],
        token_start=[span.start for span in found],
        token_end=[span.end for span in found],
        scores=scores,
        completeness_gap=None,
        truncated_tokens=0,
        fold=0,
        word_segment=[span.segment for span in found],
        word_start=[span.start for span in found],
        word_end=[span.end for span in found],
        importance=scores,
        rationale=[text in chosen for text in texts],
        rationale_text=" ".join(chosen),
        source="attribution",
        provenance="{}",
    )


def single_words(row: RationaleRow, importance: Sequence[float]) -> Sequence[Candidate]:
    """Every word but punctuation as a unit of its own."""
    return units_of(SINGLE_WORDS, row, importance)


def units_of(config: RationalesConfig, row: RationaleRow, importance: Sequence[float]) -> Sequence[Candidate]:
    """A config's candidates as units."""
    return config.candidates(row, list(map(Span, row.word_segment, row.word_start, row.word_end)), importance)


def by_name(results: Sequence[Result]) -> dict[str, Result]:
    """Results by the name of their measure."""
    return {result.measure.name: result for result in results}


def values(results: Sequence[Result]) -> dict[str, float | None]:
    """Values by the name of their measure."""
    return {result.measure.name: result.value for result in results}


def marked(row: RationaleRow) -> list[str]:
    """What people marked in a row."""
    return [text_of(row, span) for span in row.evidence]
