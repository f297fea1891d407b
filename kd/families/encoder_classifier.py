"""Encoders with a classification head, the shape of BERT. What is explained is the logit of a class.

Its answers are the classes that the model's config names, the same for every row. A model with a single logit says how
good one choice is: it reads a row once for each of the row's choices, with the other choices left out. Two texts that belong
together are given as the model's tokenizer joins a pair; see `kd.families.pairs`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from kd.errors import ConfigError, RowFault
from kd.families.base import Answer, Explained, Family, Generated, Reading, check_positions
from kd.families.pairs import pairing_of, second_text
from kd.families.text import Encoded
from kd.rows import Segment

Types = dict[str, Tensor]
"""Token types of a batch by the name that models give them; empty for a model that has none."""


class Encoder(Family):
    """A model that reads a whole row at once and says logits of it."""

    def inputs(self, rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], Types]:
        """Ids, mask and token types of a batch."""
        ids, mask = self.batch(rows)
        return ids, mask, self._pairing.types(ids, mask) if self._pairing else {}

    def logits(self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"], types: Types) -> Float[Tensor, "b c"]:
        """What the model says, in float32."""
        logits: Tensor = self.model(inputs_embeds=embeds.to(self.model.dtype), attention_mask=mask, **types).logits
        return logits.float()

    def _joined(self, segments: Sequence[Segment], second: int | None) -> Sequence[Segment]:
        """The segments as a pair whose second text is at a place, if the tokenizer joins pairs and there is one."""
        return segments if self._pairing is None or second is None else self._pairing.joined(segments, second)

    def _check_model(self) -> None:
        self._pairing = pairing_of(self.tokenizer, self.model)
        check_positions(self.model.config, "max_input_tokens", self.max_input_tokens)


class EncoderClassifier(Encoder):
    """A model that gives every class a logit. An answer's one target id is its class."""

    def check_choices(self, brought: bool) -> None:
        if brought:
            raise ConfigError(
                f"{self.name} has the fixed classes {', '.join(self._classes)}, and the rows bring choices of their own;"
                " expected a classifier with one logit, which scores one choice at a time"
            )

    def encode_rows(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded | RowFault]:
        """As every family does. Raises ConfigError where a row brings choices of its own."""
        self.check_choices(any(segment.role == "choice" for segments in rows for segment in segments))
        return super().encode_rows([self._joined(segments, second_text(segments)) for segments in rows])

    def read(self, rows: Sequence[Encoded], differentiable: bool = False) -> Reading:
        return ClassifierReading(self, rows, differentiable)

    def sequence_nll(
        self, forward: Callable[..., Any], input_ids: Sequence[list[int]], target_ids: Sequence[list[int]]
    ) -> Float[Tensor, "n"]:
        ids, mask, types = self.inputs(input_ids)
        logits = forward(input_ids=ids, attention_mask=mask, **types).logits
        classes = torch.tensor([ids[0] for ids in target_ids], device=logits.device)
        return functional.cross_entropy(logits.float(), classes, reduction="none")

    def label(self, place: int) -> str:
        """The name of a class."""
        return self._classes[place]

    def trial_answer(self, encoded: Encoded) -> Answer:  # noqa: ARG002
        """The first class."""
        return [0]

    def _embeddings_of_answer(self) -> int:
        """Its answers are classes."""
        return len(self._classes)

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        folded = text.strip().casefold()
        if folded not in self._places:
            raise RowFault("unknown_label", f"{text!r} is no class of {self.name}; it has {', '.join(self._classes)}")
        return (self._places[folded],)

    def _check_model(self) -> None:
        names = self.model.config.id2label
        self._classes = [str(names[place]) for place in sorted(names)]
        self._places = {name.strip().casefold(): place for place, name in enumerate(self._classes)}
        super()._check_model()


class ClassifierReading(Reading):
    """A batch with its logits."""

    def __init__(self, family: EncoderClassifier, rows: Sequence[Encoded], differentiable: bool) -> None:
        self._family = family
        self._rows = rows
        ids, self._mask, self._types = family.inputs([row.ids for row in rows])
        self._embeds = family.embed(ids).requires_grad_(differentiable)
        with torch.enable_grad() if differentiable else torch.inference_mode():
            self._logits = family.logits(self._embeds, self._mask, self._types)

    def generate(self) -> list[Generated]:
        return [Generated(self._family.label(place), True, [place]) for place in self._logits.argmax(-1).tolist()]

    @torch.inference_mode()
    def logprobs(self, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        found = self._logits.log_softmax(-1).tolist()
        return [[row[place] for (place,) in own] for row, own in zip(found, answers, strict=True)]

    def explained(self, answers: Sequence[Answer]) -> Explained:
        family, mask, types = self._family, self._mask, self._types
        places = torch.tensor([place for (place,) in answers], device=mask.device)

        def logit(embeds: Float[Tensor, "n t d"], rows: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
            as_read = embeds is self._embeds
            logits = self._logits if as_read else family.logits(embeds, mask[rows], _of_rows(types, rows))
            return logits.gather(1, places[rows].unsqueeze(1)).squeeze(1)

        return Explained(self._rows, mask, self._embeds, logit, family.baseline)


# --- one choice at a time ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alternatives(Encoded):
    """A row as it reads with each of its choices alone; inputs and texts by the choice's answer ids. Its own lists are empty."""

    inputs: dict[tuple[int, ...], Encoded]
    texts: dict[tuple[int, ...], str]


class ChoiceScorer(Encoder):
    """A model with a single logit, which says how good a choice is. A row's probabilities are a softmax over its choices."""

    needs_choices = True

    def check_choices(self, brought: bool) -> None:
        if not brought:
            raise ConfigError(
                f"{self.name} has one logit and scores one choice at a time, and the rows bring no choices of their own;"
                " expected a classifier with a logit for each class"
            )

    def encode_rows(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded | RowFault]:
        """Each row once for each of its choices. A row without choices has the fault "missing_field"."""
        choices = [[index for index, segment in enumerate(segments) if segment.role == "choice"] for segments in rows]
        alone = [
            self._joined(_alone(segments, index), index) for segments, own in zip(rows, choices, strict=True) for index in own
        ]
        encoded = iter(super().encode_rows(alone))
        return [
            self._alternatives(segments, own, [next(encoded) for _ in own]) for segments, own in zip(rows, choices, strict=True)
        ]

    def size(self, encoded: Encoded, answers: Sequence[Answer]) -> tuple[int, int]:  # noqa: ARG002
        """The tokens of all its inputs, each as long as the longest."""
        inputs = _by_choice(encoded).inputs.values()
        return len(inputs) * max(len(one.ids) for one in inputs), 0

    def factors(self, answer: Answer) -> int:  # noqa: ARG002
        """One, a choice's share of the softmax, however many tokens it has."""
        return 1

    def read(self, rows: Sequence[Encoded], differentiable: bool = False) -> Reading:  # noqa: ARG002
        """The gradient is taken at one choice's input only, so that is read again in `explained`."""
        return ScorerReading(self, [_by_choice(row) for row in rows])

    def trial_answer(self, encoded: Encoded) -> Answer:
        """The row's first choice."""
        return list(next(iter(_by_choice(encoded).inputs)))

    def logprobs_from_ids(self, rows: Sequence[Encoded], answers: Sequence[Answer]) -> Float[Tensor, "b"]:
        found = []
        for row, answer in zip(map(_by_choice, rows), answers, strict=True):
            ids, mask, types = self.inputs([one.ids for one in row.inputs.values()])
            scores = self.model(input_ids=ids, attention_mask=mask, **types).logits[:, 0].float().log_softmax(0)
            found.append(scores[list(row.inputs).index(tuple(answer))])
        return torch.stack(found)

    def sequence_nll(self, *_: Any) -> Float[Tensor, "n"]:
        raise ConfigError(f"{self.name} scores one choice at a time and cannot be trained here; expected a fixed set of classes")

    def score(self, embeds: Float[Tensor, "b t d"], mask: Int[Tensor, "b t"], types: Types) -> Float[Tensor, "b"]:
        """The logit of each input, in float32."""
        return self.logits(embeds, mask, types)[:, 0]

    def _alternatives(self, segments: Sequence[Segment], choices: Sequence[int], found: list[Any]) -> Encoded | RowFault:
        if not choices:
            return RowFault("missing_field", f"{self.name} scores the choices of a row, and this one has none")
        faults = [one for one in found if isinstance(one, RowFault)]
        if faults:
            return faults[0]
        texts = [segments[index].text for index in choices]
        try:
            ids = [self._answers(text) for text in texts]
        except RowFault as fault:
            return fault
        truncated_tokens = max(one.truncated_tokens for one in found)
        inputs, by_ids = dict(zip(ids, found, strict=True)), dict(zip(ids, texts, strict=True))
        return Alternatives([], [], [], truncated_tokens, inputs, by_ids)

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text.strip(), add_special_tokens=False, verbose=False)["input_ids"])


class ScorerReading(Reading):
    """A batch of rows, each read once for each of its choices, where an answer is asked for."""

    def __init__(self, family: ChoiceScorer, rows: Sequence[Alternatives]) -> None:
        self._family = family
        self._rows = rows

    @cached_property
    @torch.inference_mode()
    def _logprobs(self) -> list[list[float]]:
        ids, mask, types = self._family.inputs([one.ids for row in self._rows for one in row.inputs.values()])
        scores = self._family.score(self._family.embed(ids), mask, types)
        return [own.log_softmax(0).tolist() for own in torch.split(scores, [len(row.inputs) for row in self._rows])]

    def generate(self) -> list[Generated]:
        said = []
        for row, own in zip(self._rows, self._logprobs, strict=True):
            best = max(zip(own, row.inputs, strict=True), key=lambda scored: scored[0])[1]
            said.append(Generated(row.texts[best], True, list(best)))
        return said

    def logprobs(self, answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
        by_ids = [dict(zip(row.inputs, own, strict=True)) for row, own in zip(self._rows, self._logprobs, strict=True)]
        return [[known[tuple(ids)] for ids in own] for known, own in zip(by_ids, answers, strict=True)]

    def explained(self, answers: Sequence[Answer]) -> Explained:
        family = self._family
        rows = [row.inputs[tuple(ids)] for row, ids in zip(self._rows, answers, strict=True)]
        ids, mask, types = family.inputs([row.ids for row in rows])
        return Explained(
            rows,
            mask,
            family.embed(ids),
            lambda embeds, places: family.score(embeds, mask[places], _of_rows(types, places)),
            family.baseline,
        )


def _by_choice(encoded: Encoded) -> Alternatives:
    assert isinstance(encoded, Alternatives)  # a scorer's encode_rows makes nothing else
    return encoded


def _alone(segments: Sequence[Segment], choice: int) -> list[Segment]:
    """The segments with one choice only, where the first choice stands: behind the prompt of the first one, its letter too.

    So all choices of a row are read in the same frame. What is left out keeps its place, empty, so that spans stay true: the
    other choices, and all prompts between the first choice and the last.
    """
    choices = [place for place, segment in enumerate(segments) if segment.role == "choice"]
    gone = {place for place in range(choices[0], choices[-1] + 1) if segments[place].role in ("prompt", "choice")} - {choice}
    return [Segment(segment.role, "") if place in gone else segment for place, segment in enumerate(segments)]


def _of_rows(types: Types, rows: Int[Tensor, "n"]) -> Types:
    return {name: values[rows] for name, values in types.items()}
