"""A corpus of any size and a teacher that costs nothing: its tokens and scores are made beforehand."""

from dataclasses import dataclass

import pyarrow as pa

from kd.arrow import to_table
from kd.manifests import Shard
from kd.rows import Attribution, Example, Segment, extended
from kd.shards import Apply, Work
from kd.store import Store

SHARD_ROWS = 2_000
TOKENS = 60
TEXTS = 1_000
"""Different texts; uids are all different."""


def text(number: int) -> str:
    """Sixty words of seven letters."""
    return " ".join(f"word{(number * 7 + place) % 1000:03d}" for place in range(TOKENS))


def shards(rows: int) -> list[Shard]:
    """The units of work of a corpus of that many rows."""
    return [Shard(f"train-{start}", "train", SHARD_ROWS) for start in range(0, rows, SHARD_ROWS)]


def corpus(store: Store, rows: int) -> None:
    """Publish the examples; the texts repeat, the uids do not."""
    template = to_table([example(number) for number in range(SHARD_ROWS)], Example)
    for number, shard in enumerate(shards(rows)):
        uids = pa.array([f"train/{number * SHARD_ROWS + place}" for place in range(SHARD_ROWS)])
        examples = template.set_column(0, template.schema.field("uid"), uids)
        store.publish_table(f"examples-{rows}/{shard.file}", examples, {})


def example(number: int) -> Example:
    """One of the texts under a uid of its own."""
    return Example(
        uid=f"train/{number}",
        error=None,
        task="scale",
        split="train",
        segments=[Segment("text", text(number % TEXTS))],
        target="yes",
        label_set=["yes", "no"],
        evidence=[],
        llm_rationale=None,
        llm_label=None,
    )


@dataclass(frozen=True)
class Trivial:
    """A teacher whose answers are known: one token per word, one score each."""

    def open(self) -> Apply:
        """Tokens, spans and scores of every text, made once."""
        made = {text(number): _parts(text(number)) for number in range(TEXTS)}
        return lambda rows, _: [attributed(row, made[row.segments[0].text]) for row in rows]


Parts = tuple[list[str], list[int], list[int], list[int], list[float]]


def _parts(words: str) -> Parts:
    tokens = words.split()
    starts = [8 * place for place in range(len(tokens))]
    return tokens, [0] * len(tokens), starts, [start + 7 for start in starts], [1 / (place + 1) for place in range(len(tokens))]


def attributed(row: Example, parts: Parts) -> Attribution:
    """A row with its scores."""
    tokens, segments, starts, ends, scores = parts
    return extended(
        row,
        Attribution,
        model="trivial@1",
        method="saliency",
        explained="gold",
        explained_answer=row.target,
        generated=row.target,
        generated_cut=False,
        ranked=row.target,
        choice_logprobs=[-0.1, -2.4],
        target_logprob=-0.1,
        tokens=tokens,
        token_segment=segments,
        token_start=starts,
        token_end=ends,
        scores=scores,
        completeness_gap=None,
        truncated_tokens=0,
        fold=0,
    )


def work(rows: int) -> Work:
    """The stage over a corpus of that many rows."""
    return Work(
        title="attribute",
        recipe=Trivial(),
        source=f"examples-{rows}",
        target=f"attributions-{rows}",
        reads=Example,
        writes=Attribution,
        shards=shards(rows),
        config={},
        inputs={},
        max_error_frac=0,
        max_error_key="none",
    )
