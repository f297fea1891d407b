"""Attribution methods, each a small config object that explains a batch through Captum.

What all of them explain is one number per row: for a model that writes its answer the log-probability (nats) of the whole
answer under teacher forcing, the sum over its tokens; for a classifier the logit of the class. The end behind the answer is
one of its tokens, but for causal models that no run here trained on it. The answer is the gold one or the model's own, as
`attribution.explained` says. What they explain it by are the embeddings of the input's tokens: an encoder's input, or a
causal model's prompt.

One backward serves the whole answer of the whole batch: the number is a sum, and rows do not touch each other. Signed
scores are therefore exactly the sums of what one backward per answer token would give. Absolute ones are not: the size of
a sum of gradients is at most the sum of their sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from kd.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    from kd.families.base import Explained, Family


Baseline = Literal["pad", "mask", "mean", "zero"]
"""As in `kd.families.base`, which is heavy to import."""


class Case(NamedTuple):
    """A batch to explain. `words` numbers each row's tokens by the word that they are part of, from 0.

    `rows_at_once` is how many rows of this width the model takes together, for methods that look at versions of a row.
    """

    what: Explained
    words: Callable[[], Int[Tensor, "b t"]]
    rows_at_once: int


class Explanation(NamedTuple):
    """One score per position; padding has scores too, which mean nothing. The gap is None where none is claimed."""

    scores: Float[Tensor, "b t"]
    completeness_gap: Float[Tensor, "b"] | None


class Passes(NamedTuple):
    """How often a row goes through the model to be explained, the reading included: forward, and forward's backward."""

    forward: int
    backward: int


class _AtTheInput(Frozen):
    """What the methods share that need nothing but the gradient at the input."""

    at_the_input: ClassVar[bool] = True
    by_word: ClassVar[bool] = False
    type: str

    @property
    def name(self) -> str:
        """What rows say of it."""
        return self.type

    def check(self, family: Family) -> None:
        """Every model has that."""


class Saliency(_AtTheInput):
    """How strongly the explained number reacts to a token: the norm of the gradient at its embedding. Never negative.

    The number is the log-probability (nats) of the answer if the model writes it, the logit of its class if the model
    classifies; the answer is the gold or the predicted one, as `attribution.explained` says. A score says how much, not in
    which direction. As a log-probability is a sum, its gradient is the sum of the answer tokens' gradients, and the score is
    the norm of that sum. Methods that run one backward per answer token report the sum of the norms instead, which is larger
    where answer tokens pull in opposite directions.
    """

    type: Literal["saliency"] = "saliency"
    norm: Literal["l1", "l2"] = "l1"
    """Sum of the absolute values over the embedding, or their Euclidean length."""

    def passes(self, words: int) -> Passes:  # noqa: ARG002
        """For a row of so many words."""
        return Passes(forward=1, backward=1)

    def explain(self, case: Case) -> Explanation:
        from captum.attr import Saliency as Gradient

        what = case.what
        gradient = Gradient(what.forward).attribute(what.embeds.requires_grad_(), abs=False, additional_forward_args=(what.rows,))
        return Explanation(gradient.norm(p=int(self.norm[1]), dim=-1), None)


class InputXGradient(_AtTheInput):
    """What a token adds to the explained number, to first order: embedding times gradient, summed. Signed, in its unit.

    The number is the log-probability (nats) of the answer if the model writes it, the logit of its class if the model
    classifies; the answer is the gold or the predicted one, as `attribution.explained` says. Positive speaks for it. The
    score is linear in the gradient, so one backward for the whole answer gives exactly the sum of the answer tokens' own
    scores.
    """

    type: Literal["input_x_gradient"] = "input_x_gradient"

    def passes(self, words: int) -> Passes:  # noqa: ARG002
        return Passes(forward=1, backward=1)

    def explain(self, case: Case) -> Explanation:
        from captum.attr import InputXGradient as Product

        what = case.what
        product = Product(what.forward).attribute(what.embeds.requires_grad_(), additional_forward_args=(what.rows,))
        return Explanation(product.detach().sum(-1), None)


class _Against(Frozen):
    """What the methods share that look at the input beside a blank one."""

    at_the_input: ClassVar[bool] = False
    by_word: ClassVar[bool] = False
    type: str
    baseline: Baseline = "pad"
    """What stands in the blank input for every token of a segment: `pad` or `mask`, the embedding of that token of the
    tokenizer's, scaled as the model scales it; `mean`, the mean embedding of the vocabulary; `zero`, a vector of zeros, which
    models that normalise their embeddings have never seen, so that integrated gradients need many steps. A tokenizer
    without a token that is asked for is refused, and so is one whose padding token is its end-of-sequence token."""

    @property
    def name(self) -> str:
        """What rows say of it."""
        return f"{self.type}/{self.baseline}"

    def check(self, family: Family) -> None:
        """Raise ConfigError where a model has no such baseline."""
        family.baseline(self.baseline)


class IntegratedGradients(_Against):
    """What a token adds to the explained number on the way from a blank input to the real one. Signed, in its unit.

    The number is the log-probability (nats) of the answer if the model writes it, the logit of its class if the model
    classifies; the answer is the gold or the predicted one, as `attribution.explained` says. The blank input has the
    `baseline` for every token of a segment; special tokens stay. The path is straight. A row's scores sum to the number on the
    real input minus that on the blank one, up to `completeness_gap` (sum minus difference), which shrinks with more steps.
    Linear in the gradient, like the above.
    """

    type: Literal["integrated_gradients"] = "integrated_gradients"
    n_steps: int = Field(default=50, ge=1)
    """Points on the path; the cost is that many times that of saliency."""

    def passes(self, words: int) -> Passes:  # noqa: ARG002
        return Passes(forward=self.n_steps + 2, backward=self.n_steps)  # two for the gap: both ends of the path

    def explain(self, case: Case) -> Explanation:
        from captum.attr import IntegratedGradients as Path

        what = case.what
        scores, gap = Path(what.forward).attribute(
            what.embeds,
            what.blank(self.baseline),
            additional_forward_args=(what.rows,),
            n_steps=self.n_steps,
            internal_batch_size=max(len(what.embeds), case.rows_at_once),
            return_convergence_delta=True,
        )
        return Explanation(scores.detach().sum(-1), gap.detach())


class Occlusion(_Against):
    """What the explained number loses when a word is blanked out. Signed, in its unit.

    The number is the log-probability (nats) of the answer if the model writes it, the logit of its class if the model
    classifies; the answer is the gold or the predicted one, as `attribution.explained` says. A word's tokens are replaced
    together by the `baseline`, one word at a time, and share the loss equally. Positive speaks for the answer. No gradient is
    used: the cost is one forward per word, and the scores of a row sum to nothing in particular.
    """

    by_word: ClassVar[bool] = True
    type: Literal["occlusion"] = "occlusion"

    def passes(self, words: int) -> Passes:
        return Passes(forward=words + 1, backward=0)

    def explain(self, case: Case) -> Explanation:
        import torch
        from captum.attr import FeatureAblation

        what, words = case.what, case.words()
        lost = FeatureAblation(what.forward).attribute(
            what.embeds,
            # Special tokens and padding are the same in it, so the word that they are counted to does not matter.
            what.blank(self.baseline),
            additional_forward_args=(what.rows,),
            feature_mask=words.unsqueeze(-1),
            perturbations_per_eval=max(1, case.rows_at_once // len(words)),
        )[:, :, 0]
        tokens = torch.zeros_like(lost).scatter_add(1, words, what.is_text().to(lost.dtype)).gather(1, words)
        return Explanation(lost / tokens.clamp(min=1), None)


MethodConfig = Annotated[Saliency | InputXGradient | IntegratedGradients | Occlusion, Field(discriminator="type")]
