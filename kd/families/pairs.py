"""Two texts in one input of an encoder, as its tokenizer joins them: `[CLS] premise [SEP] hypothesis [SEP]`, with token types."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from kd.rows import Segment

PAIRS = ({"premise", "hypothesis"}, {"context", "question"})
"""Roles of two texts that belong together. A choice that is scored is the second text behind all that stands before it."""

_TAGS = re.compile(r"\s*((</?\w+>|\[\w+\])\s*)*")
"""White space and names of special tokens: what stands between two texts to part them, and says nothing itself."""

_ONE, _OTHER = "a man", "a girl"


@dataclass(frozen=True)
class Pairing:
    """How a model is given two texts. `separator` is written behind the first, and its last token has the id `last`.

    `typed` says whether the model tells them apart by token types too: 0 up to the separator's end, 1 behind it.
    """

    separator: str
    last: int
    typed: bool

    def joined(self, segments: Sequence[Segment], second: int) -> list[Segment]:
        """The segments with the separator at the end of the last text before the segment `second`; none is added or moved.

        A prompt between them that is there to part them, a special token's name or a line break, gives way to it. Words stay.
        """
        first = max((place for place in range(second) if segments[place].role not in ("prompt", "choice")), default=None)
        if first is None:
            return list(segments)
        parts = {
            place
            for place in range(first + 1, second)
            if segments[place].role == "prompt" and _TAGS.fullmatch(segments[place].text)
        }
        found = [Segment(segment.role, "") if place in parts else segment for place, segment in enumerate(segments)]
        found[first] = Segment(found[first].role, found[first].text + self.separator)
        return found

    def types(self, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"]) -> dict[str, Int[Tensor, "b t"]]:
        """What the model is given beside ids or embeddings; of padding the type is 0."""
        if not self.typed:
            return {}
        ends = (ids == self.last).long()
        return {"token_type_ids": ((ends.cumsum(1) - ends) > 0).long() * mask}


def second_text(segments: Sequence[Segment]) -> int | None:
    """The place of the second of a row's two texts; None where its texts are no pair."""
    texts = [place for place, segment in enumerate(segments) if segment.role != "prompt"]
    return texts[1] if len(texts) == 2 and {segments[place].role for place in texts} in PAIRS else None


def pairing_of(tokenizer: Any, model: Any) -> Pairing | None:
    """How the tokenizer joins two texts; None where it joins them by nothing, or by what cannot be written between them."""
    pair = tokenizer(_ONE, _OTHER, return_token_type_ids=True)
    ids, types, sides = pair["input_ids"], pair["token_type_ids"], pair.sequence_ids()
    if 0 not in sides or 1 not in sides:
        return None
    behind = len(sides) - sides[::-1].index(0)
    between = ids[behind : sides.index(1)]
    name = "".join(tokenizer.convert_ids_to_tokens(between))
    for separator in (name, f"{name} "):
        if between and tokenizer(_ONE + separator + _OTHER)["input_ids"] == ids:
            first = behind + len(between)
            typed = types == [int(place >= first) for place in range(len(ids))] and _takes_types(model)
            return Pairing(separator, between[-1], typed)
    return None


def _takes_types(model: Any) -> bool:
    given = inspect.signature(model.forward).parameters
    return "token_type_ids" in given and model.config.to_dict().get("type_vocab_size", 0) > 1
