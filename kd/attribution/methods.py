"""Attribution methods, each a small config object that explains a batch through Captum.

What all of them explain is one number per row: the log-probability (nats) of the whole answer under teacher forcing,
the sum over its tokens, end-of-sequence included. What they explain it by are the embeddings that enter the encoder.
One backward serves the whole answer of the whole batch: the number is a sum, and rows do not touch each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from kd.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    Forward = Callable[[Float[Tensor, "b t d"]], Float[Tensor, "b"]]
    """Embeddings of the batch's rows in, the explained log-probability of each row out."""


class Explanation(NamedTuple):
    """One score per position; padding has scores too, which mean nothing. The gap is None where none is claimed."""

    scores: Float[Tensor, "b t"]
    completeness_gap: Float[Tensor, "b"] | None


class Saliency(Frozen):
    """How strongly the answer reacts to a token: the norm of the gradient at its embedding. Never negative.

    As the answer's log-probability is a sum, the gradient is the sum of its tokens' gradients, and the score is the norm
    of that sum. Methods that run one backward per answer token report the sum of the norms instead, which is larger
    where answer tokens pull in opposite directions.
    """

    type: Literal["saliency"] = "saliency"
    norm: Literal["l1", "l2"] = "l1"
    """Sum of the absolute values over the embedding, or their Euclidean length."""

    def explain(self, forward: Forward, embeds: Float[Tensor, "b t d"], baseline: Float[Tensor, "b t d"]) -> Explanation:  # noqa: ARG002
        from captum.attr import Saliency as Gradient

        gradient = Gradient(forward).attribute(embeds.detach().requires_grad_())
        return Explanation(gradient.norm(p=int(self.norm[1]), dim=-1), None)


class InputXGradient(Frozen):
    """What a token adds to the answer's log-probability, to first order: embedding times gradient, summed. Signed.

    Positive speaks for the answer. The score is linear in the gradient, so one backward for the whole answer gives
    exactly the sum of the answer tokens' own scores.
    """

    type: Literal["input_x_gradient"] = "input_x_gradient"

    def explain(self, forward: Forward, embeds: Float[Tensor, "b t d"], baseline: Float[Tensor, "b t d"]) -> Explanation:  # noqa: ARG002
        from captum.attr import InputXGradient as Product

        return Explanation(Product(forward).attribute(embeds.detach().requires_grad_()).detach().sum(-1), None)


class IntegratedGradients(Frozen):
    """What a token adds to the answer's log-probability on the way from a blank input to the real one. Signed, in nats.

    The blank input has the padding token's embedding for every token of a segment; special tokens stay. The path is
    straight. A row's scores sum to the log-probability of the answer on the real input minus that on the blank one, up
    to `completeness_gap` (sum minus difference), which shrinks with more steps.
    """

    type: Literal["integrated_gradients"] = "integrated_gradients"
    n_steps: int = Field(default=50, ge=1)
    """Points on the path; the cost is that many times that of saliency."""

    def explain(self, forward: Forward, embeds: Float[Tensor, "b t d"], baseline: Float[Tensor, "b t d"]) -> Explanation:
        from captum.attr import IntegratedGradients as Path

        scores, gap = Path(forward).attribute(
            embeds,
            baseline,
            n_steps=self.n_steps,
            internal_batch_size=len(embeds),  # one step of the whole batch at a time: the memory of saliency
            return_convergence_delta=True,
        )
        return Explanation(scores.detach().sum(-1), gap.detach())


MethodConfig = Annotated[Saliency | InputXGradient | IntegratedGradients, Field(discriminator="type")]
