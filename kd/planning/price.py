"""What floating-point operations take in GPU-hours, and what those cost: arithmetic over a small table that a user edits."""

from pathlib import Path

from pydantic import Field, PositiveFloat, ValidationError

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
    usd_per_hour: float = Field(ge=0)
    """The price of one for an hour."""


class Prices(Frozen):
    """The table of hourly prices."""

    share_of_peak: float = Field(gt=0, le=1)
    """The part of the peak that is assumed to be reached."""
    gpus: tuple[Gpu, ...] = Field(min_length=1)
    """The types that a plan is made for."""

    def hours(self, gpu: Gpu, flops: float) -> float:
        """Hours that one GPU takes."""
        return flops / (gpu.peak_tflops * 1e12 * self.share_of_peak) / 3600


def read_prices(path: Path = PRICES) -> Prices:
    """The table in a YAML file. Raises ConfigError."""
    try:
        return Prices.model_validate(read_yaml(str(path)))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigError(f"{path} is no table of prices: {problems}") from None
