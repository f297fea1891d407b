"""The training loop. It knows sequences, terms and steps; not the objective, not DeepSpeed, not Ray."""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd.batching import one_ahead
from kd.errors import StageError
from kd.families.base import Family
from kd.families.opening import open_family
from kd.loading import save
from kd.models import Loaded, ModelConfig
from kd.refusals import allowed
from kd.training.adapters import merged
from kd.training.config import LoopConfig
from kd.training.data import FeatureTable, Sequences, Share
from kd.training.engine import Engine, reseed
from kd.training.objectives import Term, coefficients, sums_per_term
from kd.training.order import Order
from kd.training.ranks import by_first
from kd.training.validation import Score, Validation, named
from kd.training.watchdog import Watch, unwatched

BEST = "best"
"""The folder of the best step's model, as plain transformers loads it."""
LAST = "last"
"""The folder of the last step's model, where it is kept and not the best."""
_STATE = "state.json"
_STAND_IN = [[0]]


@dataclass
class State:
    """Where a run is. With the engine's files and the best model it is all that a restart needs.

    `best` and `last` are the scores of the best and of the newest validated step; `stale_evals` counts the validations since
    the best one; the run is `done` at its last step, or when it has been stale for too long.
    An entry of the history covers the steps since the one before: the mean loss per target token of each term in nats, the
    tokens learned and the share of the computed positions that were padding, and the gradient's norm and the learning rate
    of the last of them; after a validation its score as well. All of it comes out the same in every attempt.

    A timing belongs to each entry, with what does not: `unix_s` when, `seconds` that the updates took (without validations and
    checkpoints), and `waited_s` of them for data, on the first rank. `seconds` and `waited_s` of the state are of all of it.
    """

    step: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    best_step: int | None = None
    best: Score | None = None
    last: Score | None = None
    stale_evals: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "State":
        values = json.loads(text)
        return cls(**values | {name: Score(**values[name]) if values[name] else None for name in ("best", "last")})


@dataclass(frozen=True)
class Lessons:
    """What is learned: features, the order of their rows, the terms of the loss."""

    table: FeatureTable
    order: Order
    terms: Sequence[Term]


@dataclass(frozen=True)
class Tally:
    """One step: this rank's loss sums per term, and of the whole batch the counts, tokens and padding, the gradient's norm."""

    sums_nats: Float[Tensor, "k"]
    counts: Sequence[int]
    tokens: int
    padding_tokens: int
    gradient_norm: Float[Tensor, ""]


@dataclass
class Trainer:
    """One run on one rank. `folder` is a local folder of its own, in which the best model is kept."""

    engine: Engine
    student: Loaded
    limits: ModelConfig
    lessons: Lessons
    validation: Validation | None
    config: LoopConfig
    seed: int
    folder: Path
    state: State = field(default_factory=State)

    def train(self, progress: Callable[[State], None], checkpoint: Callable[[], None], watch: Watch = unwatched) -> State:
        """Train to the last step, or until patience ends.

        The first rank calls `progress` after every step, every rank `checkpoint` where it is due. `watch` hears what is begun: a
        step, a validation, a checkpoint; and of every pass of a step that it is done.

        Raises:
            StageError: the loss or a gradient is no longer a number.
            StoreError: the first rank cannot write a model. Both on every rank alike.
        """
        started = time.monotonic() - self.state.seconds
        tallies: list[Tally] = []
        coming = (self._share(step) for step in range(self.state.step, self.config.steps))
        logged_s, waited_s = time.monotonic(), self.state.waited_s
        with _learning(self.student.model), closing(one_ahead(coming)) as shares:
            while not self.state.done:
                watch("step", self.state.step + 1)
                tallies.append(self._update(self.state.step, self._awaited(shares), watch))
                self.state.step += 1
                if self._is_due(self.config.log_every_steps, self.config.eval_every_steps, self.config.save_every_steps):
                    self._log(tallies)
                    self._time(time.monotonic() - logged_s, self.state.waited_s - waited_s)
                    tallies.clear()
                if self._is_due(self.config.eval_every_steps):
                    watch("validate", self.state.step)
                    self._validate()
                self.state.seconds = time.monotonic() - started
                if self._is_due(self.config.save_every_steps) and not self.state.done:
                    watch("checkpoint", self.state.step)
                    checkpoint()
                if self.engine.rank == 0:
                    progress(self.state)
                if not tallies:
                    logged_s, waited_s = time.monotonic(), self.state.waited_s
        return self.state

    def save(self, folder: Path) -> None:
        """Write what a restart needs besides the best model; every rank into a folder of its own, to be merged."""
        self.engine.save(folder)
        if self.engine.rank == 0:
            (folder / _STATE).write_text(self.state.to_json())

    def load(self, folder: Path) -> None:
        """Go on from what every rank saved, with the best model beside it."""
        self.engine.load(folder)
        self.state = State.from_json((folder / _STATE).read_text())
        if self.engine.rank == 0 and (folder / BEST).exists():
            with allowed("copy", f"{folder / BEST} to {self.folder / BEST}"):
                shutil.copytree(folder / BEST, self.folder / BEST, dirs_exist_ok=True)

    def _share(self, step: int) -> Share:
        """This rank's part of a step's global batch. Runs in a thread of its own, one step ahead of the model."""
        batch = self.lessons.table.batch(self.lessons.order.rows_of_batch(step))
        engine, config, terms = self.engine, self.config, len(self.lessons.terms)
        budget_tokens = config.micro_batch_tokens
        return batch.share(engine.rank, engine.world, budget_tokens, terms, config.is_in_step, config.cut_for_workers)

    def _awaited(self, shares: Iterator[Share]) -> Share:
        """The next share; the time until it is there is noted."""
        began = time.monotonic()
        share = next(shares)
        self.state.waited_s += time.monotonic() - began
        return share

    def _update(self, step: int, share: Share, watch: Watch) -> Tally:
        """One step on one global batch. Dropout is drawn per micro-batch: where the cut is the same, on any rank the same."""
        weights = torch.tensor(coefficients(self.lessons.terms, share.target_tokens), device=self.engine.device)
        sums = torch.zeros_like(weights)
        for passes, part in enumerate(share.micro_batches, start=1):
            reseed(self.engine.device, self.seed, step, part.number)
            part_sums = self._sums(part)
            self.engine.backward((part_sums * weights).sum(), last=part is share.micro_batches[-1])
            sums += part_sums.detach()
            watch("step", step + 1, passes)
        norm = self.engine.step(self.config.learning_rate_at(step))
        return Tally(sums, share.target_tokens, share.tokens, share.padding_tokens, norm)

    def _sums(self, part: Sequences) -> Float[Tensor, "k"]:
        """The loss sums of some sequences. For none: zeros that still pass through the model, since every rank must."""
        terms = len(self.lessons.terms)
        if not part.term:
            return (self._family.sequence_nll(self.engine.forward, _STAND_IN, _STAND_IN) * 0).expand(terms)
        nll = self._family.sequence_nll(self.engine.forward, part.input_ids, part.target_ids)
        return sums_per_term(nll, torch.tensor(part.term, device=nll.device), terms)

    def _log(self, tallies: Sequence[Tally]) -> None:
        """Add one entry for these steps to the history: sums over ranks and steps, divided once."""
        sums = self.engine.total(torch.stack([tally.sums_nats for tally in tallies]).sum(0)).tolist()
        counts = np.sum([tally.counts for tally in tallies], axis=0).tolist()
        means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        tokens, padding = (
            sum(counted) for counted in zip(*((each.tokens, each.padding_tokens) for each in tallies), strict=True)
        )
        norms = [float(tally.gradient_norm) for tally in tallies]
        self._check_finite(sum(sums), norms)
        self.state.history.append(
            {
                "step": self.state.step,
                "loss": dict(zip([term.name for term in self.lessons.terms], means, strict=True)),
                "tokens": tokens,
                "padding_frac": padding / (tokens + padding) if tokens else 0.0,
                "gradient_norm": norms[-1],
                "learning_rate": self.config.learning_rate_at(self.state.step - 1),
            }
        )

    def _check_finite(self, loss_nats: float, norms: Sequence[float]) -> None:
        """Raise StageError where the loss of the newest steps is no number, or the norm of any of their gradients is none.

        From stage 1 on DeepSpeed leaves such a step out, and only its norm, infinity, tells.
        """
        first = self.state.step - len(norms) + 1
        bad = [(first + place, norm) for place, norm in enumerate(norms) if not math.isfinite(norm)]
        step, norm = [*bad, (self.state.step, norms[-1])][0]
        if bad or not math.isfinite(loss_nats):
            raise StageError(
                f"the loss is {loss_nats}, its gradient {norm} at step {step}; expected finite numbers."
                " Lower the learning rate, set clip_norm, or train in float32."
            )

    def _time(self, seconds: float, waited_s: float) -> None:
        """Add the timing of the newest entry."""
        timing = {"step": self.state.step, "unix_s": time.time(), "seconds": seconds, "waited_s": waited_s}
        self.state.timings.append(timing)

    def _validate(self) -> None:
        """Score this step, and keep its model if it is the best so far or the last; without validation rows the last is best."""
        if self.validation is None and self.state.step < self.config.steps:
            return
        with self.engine.whole() as model, merged(model) if self.config.lora else nullcontext():
            whole = dataclasses.replace(self.student, model=model)
            score = self.validation.score(self.engine, self._open_family(whole)) if self.validation else None
            self._judge(score)
            by_first(lambda: self._keep(whole))
        if score is not None:
            self.state.history[-1] |= named(score)

    def _judge(self, score: Score | None) -> None:
        """Whether this step is the best so far, and whether it is the last; scores are of all ranks, so all of them agree."""
        state = self.state
        state.last = score
        state.stale_evals += 1
        if score is None or score.beats(state.best):
            state.best_step, state.best, state.stale_evals = state.step, score, 0
        state.done = state.step == self.config.steps or state.stale_evals == self.config.patience_evals

    def _keep(self, whole: Loaded) -> None:
        """Write the model of this step if it is wanted: the best so far, or the last."""
        is_best = self.state.best_step == self.state.step
        if not is_best and not (self.state.done and self.config.keep_last):
            return
        save(whole, self.folder / (BEST if is_best else LAST))

    @cached_property
    def _family(self) -> Family:
        return self._open_family(self.student)

    def _open_family(self, loaded: Loaded) -> Family:
        return open_family(loaded, self.limits)

    def _is_due(self, *every_steps: int) -> bool:
        """Whether one of these intervals ends with the step just done; the last step ends all of them."""
        return self.state.step == self.config.steps or any(every and self.state.step % every == 0 for every in every_steps)


@contextmanager
def _learning(model: torch.nn.Module) -> Iterator[None]:
    """Dropout is on inside, and torch's random numbers go on outside as if none had been drawn."""
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(was_training)
