"""How models are trained: the knobs of the loop, and the students to train."""

from typing import Any, Literal

from pydantic import Field, model_validator

from kd.frozen import Frozen
from kd.training.adapters import Lora
from kd.training.objectives import Answers, AnyObjective, LabelOnly, MultiTask

NAME = r"^[a-z0-9_-]+$"
RESERVED = frozenset({"teacher", "chance"})
"""What the report calls its rows that are no students."""


class LoopConfig(Frozen):
    """One training run: AdamW, linear or constant schedule, fixed number of steps."""

    steps: int = Field(default=10_000, ge=1)
    """Optimizer updates."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows of one update, over all workers, any number of either. A row teaches one sequence per target (label, rationale)."""
    micro_batch_tokens: int = Field(default=4_096, ge=1)
    """Padded tokens that a worker takes at once; gradients are accumulated until `batch_rows` are done. It bounds memory, and
    sequences are put beside others of their lengths, so the fewer the less is padded: on a CPU about 2000 is fastest, on a
    GPU as many as fit. Losses do not depend on it, but which numbers dropout draws does."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Highest learning rate."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: linear decay to zero at the last step, or constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up, from a first update at zero to one at `learning_rate`, as transformers does it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay of matrices; norms and biases have none."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 turns clipping off."""
    eval_every_steps: int = Field(default=250, ge=1)
    """Steps between validations. The step that validates best is the one that is kept."""
    eval_rows: int = Field(default=500, ge=0)
    """At most this many validation rows, the same for every run. 0: no validation, the last step is kept."""
    patience_evals: int | None = Field(default=None, ge=1)
    """Training ends early when so many validations in a row have not beaten the best. Null: never. The schedule is that of
    `steps` all the same."""
    keep_last: bool = True
    """Whether the last step's model is kept beside the best one's, in `last/` beside `model/`, where they are not the same."""
    eval_batch_tokens: int = Field(default=4_096, ge=1)
    """Padded tokens of one validation batch."""
    save_every_steps: int = Field(default=500, ge=0)
    """Steps between checkpoints to resume from; 0: none, an interrupted run starts again."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many checkpoints stay, the newest ones."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between entries of the history; an entry covers all steps since the one before."""
    window_shards: int = Field(default=8, ge=1)
    """Rows are shuffled inside windows of this many shards, the shards themselves every epoch."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 shares nothing, 1 splits optimizer states over workers, 2 gradients too, 3 parameters too."""
    zero3_whole_below_params: int = Field(default=100_000, ge=0)
    """Under ZeRO-3, parameters smaller than this stay whole on every worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: weights and gradients in bf16, the optimizer's copy in fp32; from `zero_stage` 1 on."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of layers for the backward pass, and compute the rest again: less
    memory, for one more forward pass."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the CPU's memory while the device does not need it: the optimizer's states (its step is then taken on
    the CPU; from `zero_stage` 1 on), or parameters as well (at `zero_stage` 3)."""
    lora: Lora | None = None
    """Train low-rank adapters and leave the model as it is; they are merged into the exported model. Null: train it whole."""
    num_workers: int = Field(default=1, ge=1)
    """Workers of the group, one GPU each where the cluster's device is cuda. No part of what a run is recognised by: global
    batches are the same, and a run that was interrupted goes on with another number of workers. Without dropout its losses
    stay what they were, with dropout too where `cut_for_workers` is set."""
    cut_for_workers: int | None = Field(default=None, ge=1)
    """For how many workers a global batch is cut into micro-batches, each of which draws its own dropout. Null: for as many as
    there are, so that with dropout a run that goes on with another number goes on from the same state, but with other draws.
    Set it where the number may change, to the largest one: then draws and losses are the same with any number of workers. A
    number that does not divide it leaves workers without work in some passes."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPUs and torch threads of a worker."""
    max_error_frac: float = Field(default=0.01, ge=0, le=1)
    """The model may fail to read or write at most this share of the rows without an error (an answer is too long, for instance).
    Above it, training does not begin."""
    max_failures: int = Field(default=3, ge=0)
    """How often one run is begun again, from its last checkpoint, after its group lost a worker or could not reach the run
    directory. Then it has failed, and the queue goes on without it. It is counted anew whenever the run has a newer checkpoint
    than at the time before, so a long run on machines that are taken away now and then is not given up. A worker whose loss
    Ray knows to be a reclaimed node does not count at all."""
    parallel_runs: int | None = Field(default=None, ge=1)
    """Worker groups that train runs of the queue side by side. Null: as many as fit what the cluster has free, at least one;
    it is looked again while runs wait. 1: one run after the other. A cluster that grows on demand grows by as many groups as
    ask for room, so say how many there."""
    step_timeout_s: float = Field(default=1800.0, gt=0)
    """A worker that takes longer than this for one thing ends its group, and the error says which worker did what. One thing
    is a step, a validation, a checkpoint, the opening of a run (its model, its rows) or the publishing of its model."""

    @model_validator(mode="after")
    def _warmup_fits_the_steps(self) -> "LoopConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be fewer than steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _precision_fits_the_stage(self) -> "LoopConfig":
        # For this pair DeepSpeed 0.19 takes FP16_UnfusedOptimizer, whose constructor steps the optimizer on zero gradients.
        if self.zero_stage == 0 and self.precision == "bfloat16":
            raise ValueError(
                "precision bfloat16 with zero_stage 0 lets DeepSpeed take one AdamW step too many (decay, bias correction);"
                " expected zero_stage: 1, which only splits optimizer states, or precision: float32"
            )
        return self

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> "LoopConfig":
        lowest = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"offload {self.offload} needs what ZeRO splits: expected zero_stage {lowest} or higher, got {self.zero_stage}"
            )
        return self

    @model_validator(mode="after")
    def _patience_has_validations(self) -> "LoopConfig":
        if self.patience_evals is not None and not self.eval_rows:
            raise ValueError(
                f"patience_evals ({self.patience_evals}) counts validations, and eval_rows = 0 turns them off;"
                " set eval_rows, or patience_evals: null"
            )
        return self

    @property
    def has_plain_gradients(self) -> bool:
        """Whether every worker has the whole gradient in fp32, so that its norm and its clipping are ours, not DeepSpeed's."""
        return self.zero_stage == 0

    @property
    def is_in_step(self) -> bool:
        """Whether workers wait for each other in every pass through the model: each keeps a part of the gradient, or of the
        weights too. Where they do not, it is once in a step."""
        return self.zero_stage >= 2

    @property
    def loop(self) -> dict[str, Any]:
        """The fields that change a run's outcome. Left out are the handling of failures, the number of workers, and what says
        how much is logged or read at once."""
        fields = set(LoopConfig.model_fields) - {"max_error_frac", "max_failures", "keep_checkpoints", "save_every_steps"}
        fields -= {"log_every_steps", "eval_batch_tokens", "num_workers", "threads_per_worker", "parallel_runs", "step_timeout_s"}
        return self.model_dump(mode="json", include=fields)

    def validations_by(self, step: int) -> int:
        """How often a run has been validated that ends at this step: after every `eval_every_steps`, and at its end."""
        return -(-step // self.eval_every_steps)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that follows `step` finished ones, by transformers' schedules: with a warm-up the
        first is zero."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (self.steps - step) / (self.steps - self.warmup_steps)


class TeachConfig(LoopConfig):
    """How the teacher is fine-tuned: by the students' own loop, on the label alone."""

    seed: int = Field(default=0, ge=0)
    """Orders the rows and drives dropout; a teacher built from a spec starts from it."""
    objective: LabelOnly = LabelOnly()
    """What the teacher learns."""


class Variant(Frozen):
    """One way to teach a student."""

    name: str = Field(pattern=NAME)
    """Names the student; its folder is students/<name>/<seed>."""
    source: str = Field(pattern=NAME)
    """The source of rationales it learns from, one of `rationales.sources`."""
    objective: AnyObjective = Field(default=MultiTask(), validate_default=True)
    """What it learns from a row."""


class TrainingConfig(LoopConfig):
    """The students: every variant with every seed, trained alike."""

    variants: tuple[Variant, ...] = Field(min_length=1)
    """The ways to teach a student that are compared."""
    answers: Answers = "gold"
    """Which answer students learn: the row's target (`gold`), the one of the teacher that was explained (`teacher`), which
    rows without a label have too, or the label of the LLM whose rationale came with the row (`llm`). Where
    `attribution.explained` is gold, the first two differ only in rows without a label. A row without the answer that is asked
    for teaches nothing, and is counted, and so does one whose answer the teacher wrote and did not end; validation and
    evaluation are against the target in any case."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Each variant is trained once per seed: it sets first weights, order of the rows and dropout, alike for all variants."""

    @model_validator(mode="after")
    def _runs_are_distinct(self) -> "TrainingConfig":
        names = [variant.name for variant in self.variants]
        for what, values in (("variants", names), ("seeds", [str(seed) for seed in self.seeds])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{what}: expected each once, got {', '.join(twice)} more than once")
        for name in RESERVED.intersection(names):
            raise ValueError(f"variants: {name!r} names another row of the report than a student's; choose another name")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds: expected numbers from 0, got {min(self.seeds)}")
        return self
