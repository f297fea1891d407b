"""Where the work of a run is done, as the config says it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd.frozen import Frozen

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")]


class ClusterConfig(Frozen):
    """Where the work runs and with how many workers."""

    address: str | None = None
    """Address of a running cluster. Null: the cluster this job was submitted to, else a local one of its own."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What models run on. `cuda` asks the cluster for GPUs and waits for them; there is no silent fallback to CPU."""
    min_actors: int = Field(default=1, ge=1)
    """Actors a stage starts with. They are asked for at once, so an autoscaling cluster grows in one step."""
    max_actors: int = Field(default=2, ge=1)
    """Actors a stage may grow to."""
    cpus_per_actor: float = Field(default=1, gt=0)
    """CPUs of an actor without GPU."""
    gpus_per_actor: float = Field(default=1, gt=0)
    """GPUs of an actor where `device` is cuda. A fraction shares a GPU; over several the model is spread, layer by layer."""
    threads_per_actor: int = Field(default=1, ge=1)
    """Torch threads of an actor, so that actors on one machine do not fight for its cores."""
    actor_labels: dict[str, Label] = Field(default_factory=dict)
    """Labels that a node must have for actors with a model to run on it, such as `market: spot`. Empty: any node will do."""
    training_labels: dict[str, Label] = Field(default_factory=dict)
    """Labels that a node must have for training workers to run on it, such as `market: on-demand`. Empty: any node will do."""
    local_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local cluster (null: twice the cores, as reading and writing must fit beside the models)."""
    local_object_store_bytes: int = Field(default=300_000_000, ge=80_000_000)
    """Object store of a local cluster. Shards never pass through it, so it can be small."""

    @property
    def model_device(self) -> Literal["cpu", "cuda", "spread"]:
        """Where an actor puts its model: over all its GPUs where it has several."""
        if self.device == "cpu":
            return "cpu"
        return "spread" if self.gpus_per_actor > 1 else "cuda"

    @model_validator(mode="after")
    def _pool_is_possible(self) -> "ClusterConfig":
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is smaller than min_actors ({self.min_actors})")
        return self
