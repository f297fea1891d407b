"""What a plan says, as plain data, and the arithmetic of its time and its price."""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kd.planning.price import Case, Gpu, Prices
from kd.planning.probe import Probe

SHARD_SECONDS = 60.0
"""A shard is what a lost worker costs: about this much work of one actor at most."""
SHARDS_PER_ACTOR = 4
"""Fewer, and the last shards leave actors idle."""
ROWS_TOGETHER = 32
"""Fewer, and a micro-batch is no work for a device; so a shard should not hold fewer either."""
DEADLINE_SECONDS = 3600.0
"""The time for which a number of actors is suggested."""


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """One split. `counted` says where `rows` comes from; `explained` of them are attributed.

    Of `sampled` rows `bad` could not be read and `faults` not be taken by the teacher, by reason. Histogram: the lower end
    of each bin of input tokens, and how many rows are in it.
    """

    rows: int
    counted: str
    explained: int
    sampled: int
    bad: int
    faults: Mapping[str, int]
    mean_input_tokens: float
    median_input_tokens: float
    longest_input_tokens: int
    histogram: Sequence[tuple[int, int]]
    truncated_frac: float
    attribution_gflop_per_row: float


Span = tuple[float, float]
"""A number in the best case and in the worst one."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage that needs a model: rows that go through it, and what it asks of its devices, of all together.

    `kernels` are the operations started on them, one after the other on each. `updates` are the optimizer's steps, counted on
    each device that takes one; they move `moved_bytes` through the devices' memories and exchange `exchanged_bytes`.
    `processes` open a model, `loaded_bytes` in all. `memory_gib` are weights, and for training their gradients and the
    optimizer's states, before ZeRO divides them; activations come on top.
    """

    rows: int
    flops: float
    memory_gib: float
    devices: int = 1
    kernels: float = 0.0
    updates: float = 0.0
    moved_bytes: float = 0.0
    exchanged_bytes: float = 0.0
    processes: int = 0
    loaded_bytes: float = 0.0

    def seconds(self, gpu: Gpu, case: Case) -> float:
        """What its devices take, added up. Started kernels and what they compute overlap: the longer of the two counts."""
        computed = self.flops / (gpu.peak_tflops * 1e12 * case.share_of_peak)
        started = self.kernels * case.kernel_us / 1e6
        moved = self.moved_bytes / (gpu.memory_gb_per_s * 1e9 * case.share_of_peak)
        updated = self.updates * case.update_ms / 1e3 + moved + self.exchanged_bytes / (case.exchange_gb_per_s * 1e9)
        opened = self.processes * case.process_s + self.loaded_bytes / (case.load_gb_per_s * 1e9)
        return max(computed, started) + updated + opened


@dataclass(frozen=True)
class BatchPlan:
    """Micro-batches of attribution: the configured budget and the suggested one, with its share of padding and rows on average.

    `rows_per_s` were measured, by budget; it is empty where the suggestion follows from the rows' lengths alone.
    """

    configured_tokens: int
    batch_tokens: int
    padding_frac: float
    rows: float
    rows_per_s: Mapping[int, float]


@dataclass(frozen=True)
class GpuPlan:
    """One type of GPU: GPU-hours by stage and of `nodes` that do no work yet or any more, their sum and price, from the best
    case to the worst; and how many GPUs attribute within an hour in either (0: nothing to).

    `too_small` are the stages whose model does not fit on one.
    """

    type: str
    hours: Mapping[str, Span]
    nodes: Span
    total_hours: Span
    usd: Span
    to_attribute_in_an_hour: tuple[int, int]
    too_small: Sequence[str]


@dataclass(frozen=True)
class TimePlan:
    """Attribution on actors like the probed ones: `seconds` with so many, and how many finish within an hour.

    `local`: they are what this machine has the speed of. Otherwise they are the config's, each on its part of some machine.
    """

    actors: int
    local: bool
    seconds: float
    actors_for_an_hour: int


@dataclass(frozen=True, kw_only=True)
class HerePlan:
    """The run on this machine: seconds by stage, in the order in which they run, and of the whole, from best case to worst."""

    seconds: Mapping[str, Span]
    total: Span


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it. `output_bytes` is by folder of the run directory; `probe` and `attribution` are None without a probe, and
    `batches` without a teacher. `here` is None without a probe, and where the run is not to be on this machine."""

    name: str
    splits: Mapping[str, SplitPlan]
    stages: Mapping[str, StagePlan]
    batches: BatchPlan | None
    gpus: Sequence[GpuPlan]
    output_bytes: Mapping[str, int]
    probe: Probe | None
    attribution: TimePlan | None
    here: HerePlan | None
    rows_per_shard: int
    """The suggested one."""
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The same as data for a JSON file."""
        return asdict(self)


def on_gpu(gpu: Gpu, prices: Prices, stages: Mapping[str, StagePlan]) -> GpuPlan:
    """What the stages take of one type of GPU. Of the nodes of each stage it is assumed that they start once and wait once."""
    cases = (prices.best, prices.worst)
    hours = {title: _span(stage.seconds(gpu, case) / 3600 for case in cases) for title, stage in stages.items()}
    devices = max((stage.devices for stage in stages.values()), default=0)
    nodes = _span(devices * case.node_s / 3600 for case in cases)
    total = _span(sum(each[place] for each in (*hours.values(), nodes)) for place in range(2))
    small = [title for title, stage in stages.items() if stage.memory_gib > gpu.memory_gib]
    best, worst = (max(1, math.ceil(value)) if "attribute" in hours else 0 for value in hours.get("attribute", (0.0, 0.0)))
    usd = _span(value * gpu.usd_per_hour for value in total)
    return GpuPlan(gpu.type, hours, nodes, total, usd, (best, worst), small)


def _span(values: Iterable[float]) -> Span:
    best, worst = values
    return best, worst


def on_actors(probe: Probe, actors: int, local: bool, shards: Sequence[int]) -> TimePlan:
    """How long actors like the probed one take for shards of so many rows."""
    left = max(1.0, DEADLINE_SECONDS - probe.load_s)
    wanted = math.ceil(sum(shards) / (probe.rows_per_s * left))
    return TimePlan(actors, local, probe.load_s + makespan(shards, actors) / probe.rows_per_s, max(1, wanted))


def makespan(parts: Sequence[float], workers: int) -> float:
    """What the busiest worker has to do where each takes the largest part that is left, as the stages do."""
    busy = [0.0] * workers
    for part in sorted(parts, reverse=True):
        heapq.heapreplace(busy, busy[0] + part)
    return max(busy)


def cut_in_shards(rows: int, rows_per_shard: int) -> list[int]:
    """The rows of each shard of a split."""
    whole, rest = divmod(rows, rows_per_shard)
    return [rows_per_shard] * whole + [rest] * (rest > 0)


def suggested_shard(rows: int, actors: int, configured: int, rows_per_s: float | None) -> int:
    """Rows of a shard: enough shards for every actor, and a minute of work at most; without a rate no more than configured."""
    most = configured if rows_per_s is None else rows_per_s * SHARD_SECONDS
    return _rounded(max(1, math.floor(min(most, rows / (SHARDS_PER_ACTOR * actors)))))


def smaller_shard(shards: Sequence[int], actors: int, configured: int) -> int | None:
    """Rows of a shard that would keep more actors busy than shards of so many rows; None where these are enough, or small."""
    if actors == 1 or len(shards) >= SHARDS_PER_ACTOR * actors:
        return None
    better = suggested_shard(sum(shards), actors, configured, rows_per_s=None)
    return better if ROWS_TOGETHER <= better < configured else None


def _rounded(number: int) -> int:
    """The number with two leading digits, rounded down."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit
