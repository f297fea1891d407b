"""What work takes in GPU-hours, and what those cost: arithmetic over a small table that a user edits."""

from pathlib import Path

from pydantic import Field, PositiveFloat, ValidationError, model_validator

from kd.config import read_yaml
from kd.errors import ConfigError
from kd.frozen import Frozen

PRICES = Path(__file__).parents[2] / "configs" / "prices.yaml"


class Gpu(Frozen):
    """One type of GPU."""

    type: str
    """What it is called."""
    peak_tflops: PositiveFloat
    """Dense bfloat16 matrix products at most, in 10^12 floating-point operations per second."""
    memory_gib: PositiveFloat
    """Its memory."""
    memory_gb_per_s: PositiveFloat
    """How fast its memory is read and written, in 10^9 bytes per second."""
    usd_per_hour: float = Field(ge=0)
    """The price of one for an hour."""


class Case(Frozen):
    """What is assumed of machines and software: the best case, or the worst one."""

    share_of_peak: float = Field(gt=0, le=1)
    """The part of the peak, and of the memory's speed, that is reached."""
    kernel_us: float = Field(ge=0)
    """Microseconds from one operation that is started on a GPU to the next: small ones take no less."""
    update_ms: float = Field(ge=0)
    """Milliseconds that an optimizer's step takes in Python and DeepSpeed, beside what it moves."""
    exchange_gb_per_s: PositiveFloat
    """How fast workers exchange gradients and weights, in 10^9 bytes per second and worker."""
    process_s: float = Field(ge=0)
    """Seconds until a new process has loaded its libraries."""
    load_gb_per_s: PositiveFloat
    """How fast weights are loaded, in 10^9 bytes per second."""
    node_s: float = Field(ge=0)
    """Seconds in which a node is paid for and does no work: start, image, and idle until it is given back."""


class Prices(Frozen):
    """The table of hourly prices."""

    best: Case
    """The best case."""
    worst: Case
    """The worst one."""
    gpus: tuple[Gpu, ...] = Field(min_length=1)
    """The types that a plan is made for."""

    @model_validator(mode="after")
    def _best_is_best(self) -> "Prices":
        best, worst = self.best, self.worst
        rising = [name for name in ("share_of_peak", "exchange_gb_per_s", "load_gb_per_s") if _of(best, name) < _of(worst, name)]
        falling = [name for name in ("kernel_us", "update_ms", "process_s", "node_s") if _of(best, name) > _of(worst, name)]
        if rising or falling:
            raise ValueError(f"the best case is worse than the worst one in {', '.join([*rising, *falling])}; swap them")
        return self


def _of(case: Case, name: str) -> float:
    return float(case.model_dump()[name])


def read_prices(path: Path = PRICES) -> Prices:
    """The table in a YAML file. Raises ConfigError."""
    try:
        return Prices.model_validate(read_yaml(str(path)))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"{path} is no table of prices: {problems}") from None
