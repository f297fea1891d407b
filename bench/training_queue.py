"""What one more tiny run costs a worker group that is at work, beyond its own steps, at every ZeRO stage.

A run's own time is what its manifest says of its steps, validations and checkpoints. Opening its model and rows, building
the engine, publishing and the turn to the next run are what the group adds. A start of a group is not counted.
"""

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import ray

from bench.record import Record
from kd.manifests import Manifest
from kd.ray_train import train_queue
from kd.ray_worker import RUNS_PER_GROUP_AT_STAGE_3
from kd.training.config import LoopConfig
from kd.training.runs import Queue
from tests.tiny_runs import SHORT, tiny_queue

MOST_S = 1.0


def added_seconds(queue: Queue) -> list[float]:
    """What each run after the first added to its own time: all were trained by one group, one after the other."""
    manifests = [done for item in queue.items if (done := queue.store.manifest(item.folder)) is not None]
    return [_ended_s(later) - _ended_s(earlier) - later.seconds for earlier, later in pairwise(manifests)]


def _ended_s(manifest: Manifest) -> float:
    return manifest.finished_unix_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    record = Record("queue", asked.out)
    record.machine(workers=asked.workers, runs=RUNS_PER_GROUP_AT_STAGE_3)
    ray.init(address="local", num_cpus=asked.workers + 1, include_dashboard=False, log_to_driver=False)
    for stage in range(4):
        training = LoopConfig(
            **SHORT.model_dump() | {"num_workers": asked.workers, "zero_stage": stage, "parallel_runs": 1, "max_failures": 0}
        )
        with tempfile.TemporaryDirectory() as folder:
            queue = tiny_queue(Path(folder), training, seeds=range(RUNS_PER_GROUP_AT_STAGE_3 // 2))
            train_queue(queue)
            added = added_seconds(queue)
        for number, seconds in enumerate(added, start=2):
            record.figure(f"zero{stage}", f"added by run {number}", seconds, "s")
        record.bar(f"the dearest of more runs at ZeRO-{stage}, seconds over its steps", max(added), "at_most", MOST_S)
    ray.shutdown()
    record.end()


if __name__ == "__main__":
    main()
