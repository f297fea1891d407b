"""How a benchmark speaks: one JSON line per figure, one per bar at the end, and an exit status."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Timings = Mapping[str, Callable[[], float]]
"""By case, something to do that says how many units it did."""


@dataclass
class Record:
    """The figures of one run. `name` is the benchmark; lines go to the terminal, and to a file where one is named.

    Until the end they are in `<file>.partial`: a run that is interrupted leaves the record of the one before as it was.
    """

    name: str
    path: Path | None = None
    bars: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._partial = self.path and self.path.with_name(f"{self.path.name}.partial")
        if self._partial:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_text("")

    def figure(self, case: str, metric: str, value: float | str | None, unit: str) -> None:
        """One measured figure."""
        self._say({"bench": self.name, "case": case, "metric": metric, "value": _short(value), "unit": unit})

    def bar(self, bar: str, value: float | None, at: Literal["at_least", "at_most"], limit: float) -> None:
        """One bar, said at the end: is a value at least or at most a limit? One that could not be had does not hold."""
        holds = value is not None and (value >= limit if at == "at_least" else value <= limit)
        self.bars.append({"bar": bar, "value": _short(value), at: limit, "holds": holds})

    def machine(self, **more: object) -> None:
        """What it ran on."""
        import torch

        from kd.loading import device_name

        self.figure("machine", "device", device_name("cuda" if torch.cuda.is_available() else "cpu"), "name")
        self.figure("machine", "cores", os.cpu_count(), "count")
        self.figure("machine", "threads", torch.get_num_threads(), "count")
        self.figure("machine", "torch", torch.__version__, "version")
        for name, value in more.items():
            self.figure("machine", name, str(value), "setting")

    def end(self) -> None:
        """Say the bars, keep the record, and leave with a status that says whether all of them hold."""
        for bar in self.bars:
            self._say(bar)
        if self.path and self._partial:
            self._partial.replace(self.path)
        sys.exit(0 if all(bar["holds"] for bar in self.bars) else 1)

    def _say(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if self._partial:
            with self._partial.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")


def rates(cases: Timings, rounds: int) -> dict[str, list[float]]:
    """Units per second of every case in every round; the cases take turns, so that a slow spell hits all of them."""
    found: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, do in cases.items():
            started = time.perf_counter()
            units = do()
            found[case].append(units / (time.perf_counter() - started))
    return found


def ratio(found: Mapping[str, list[float]], case: str, against: str) -> float:
    """The median over rounds of one case's rate over another's in the same round."""
    return statistics.median(one / other for one, other in zip(found[case], found[against], strict=True))


def _short(value: float | str | None) -> float | str | None:
    return float(f"{value:.4g}") if isinstance(value, float) else value
