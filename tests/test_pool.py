"""How a stage is laid out over actors: the longest shards first, a pool that starts at its minimum and waits, torch's threads."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray.data

from kd import ray_data
from kd.manifests import Shard
from kd.ray_data import Pool
from kd.shards import Claimed, claim
from kd.store import Store
from tests.tiny_shards import work

ROOT = Path(__file__).parents[1]


def test_the_longest_shards_are_done_first_and_equal_ones_in_their_order(tmp_path: Path) -> None:
    shards = [Shard(f"train-{place}", "train", rows) for place, rows in enumerate([10, 30, 20, 30, 5])]
    claimed = claim(Store.at(str(tmp_path)), work(shards))
    assert isinstance(claimed, Claimed)
    assert [shard.name for shard in claimed.todo] == ["train-1", "train-3", "train-2", "train-0", "train-4"]


@dataclass(frozen=True)
class Dealt:
    """Takes the place of Ray Data: keeps the units in the order in which they are handed over, and does none."""

    names: list[str]

    def from_items(self, items: list[dict[str, object]], override_num_blocks: int) -> "Dealt":
        assert override_num_blocks == len(items), "a shard is a task"
        self.names.extend(str(item["name"]) for item in items)
        return self

    def map_batches(self, *_: object, **__: object) -> "Dealt":
        return self

    def iter_batches(self, **_: object) -> Iterator[dict[str, object]]:
        raise KeyboardInterrupt


@pytest.fixture
def context() -> Iterator[ray.data.DataContext]:
    """Ray Data's settings of this process, one of them changed; they are put back."""
    current = ray.data.DataContext.get_current()
    names = ["execution_no_progress_timeout_s", "enable_progress_bars"]
    before = {name: getattr(current, name) for name in names}
    current.execution_no_progress_timeout_s = 600
    yield current
    for name, value in before.items():
        setattr(current, name, value)


def test_ray_is_handed_the_shards_in_that_order_and_told_that_waiting_for_a_machine_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: ray.data.DataContext
) -> None:
    dealt = Dealt([])
    monkeypatch.setattr(ray.data, "from_items", dealt.from_items)
    shards = [Shard("train-0", "train", 1), Shard("train-1", "train", 3), Shard("train-2", "train", 2)]
    with pytest.raises(KeyboardInterrupt):
        ray_data.run(Store.at(str(tmp_path)), [work(shards)], Pool(1, 1, 1, 0), lambda done, total: None)
    assert dealt.names == ["train-1", "train-2", "train-0"]
    assert context.execution_no_progress_timeout_s == -1


def test_a_pool_starts_at_its_minimum_and_may_grow() -> None:
    strategy = Pool(min_actors=3, max_actors=8, cpus_per_actor=1, gpus_per_actor=0).options(100)["compute"]
    assert (strategy.initial_size, strategy.min_size, strategy.max_size) == (3, 3, 8)


def test_a_pool_has_no_more_actors_than_there_is_to_do() -> None:
    strategy = Pool(min_actors=3, max_actors=8, cpus_per_actor=1, gpus_per_actor=0).options(2)["compute"]
    assert (strategy.initial_size, strategy.min_size, strategy.max_size) == (2, 2, 2)


@pytest.mark.parametrize(("gpus", "asked"), [(0, {"num_cpus": 2}), (0.5, {"num_gpus": 0.5})])
def test_an_actor_asks_for_gpus_or_for_cpus(gpus: float, asked: dict[str, float]) -> None:
    options = Pool(1, 1, cpus_per_actor=2, gpus_per_actor=gpus, labels={"market": "spot"}).options(9)
    assert {key: options[key] for key in options if key.startswith("num_")} == asked
    assert options["label_selector"] == {"market": "spot"}


THREADS = """
import sys
from pathlib import Path
import torch
from kd.attribution.engine import Attribute, AttributionConfig
from tests.tiny import tiny_source
torch.set_num_threads(1)
Attribute(AttributionConfig(), tiny_source(Path(sys.argv[1])), "cpu", threads=3).open()
print(torch.get_num_threads())
"""


def test_an_actor_that_opens_the_teacher_computes_with_the_threads_that_it_was_given(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3"], done.stdout + done.stderr
