"""What a job asks of a cluster: placed by label, refused where it can never be had, and named where it is waited for."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from jobs.cli import Session
from jobs.cluster import Need, needs_of, refuse_impossible, said_of_waiting, waiting_for_workers
from jobs.console import Console
from jobs.watching import PATIENCE_S, Look, Watch, look_around
from jobs.wiring import Wiring
from kd import ray_data
from kd.errors import ConfigError
from kd.ray_data import Pool
from kd.shards import Apply
from kd.store import Store
from tests.mini import mini_config, write_mini
from tests.tiny_shards import Shout, corpus, work

ROOT = Path(__file__).parents[1]
DEADLINE_S = 120
SPOT, ON_DEMAND = {"market": "spot"}, {"market": "on-demand"}


def node(labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    """A node as Ray describes it."""
    return {"Alive": True, "Resources": resources, "Labels": labels or {}}


@pytest.fixture
def wiring(tmp_path: Path) -> Wiring:
    config = mini_config(write_mini(tmp_path))
    return Wiring(config, Store.at(config.directory))


def on_gpus(wiring: Wiring, **values: Any) -> Wiring:
    cluster = wiring.config.cluster.model_copy(update={"device": "cuda", "gpus_per_actor": 0.5, **values})
    return Wiring(wiring.config.model_copy(update={"cluster": cluster}), wiring.store)


def test_a_job_asks_for_its_stages_and_the_pipeline_for_all(wiring: Wiring) -> None:
    actors = "2 CPUs (cluster.min_actors x cluster.cpus_per_actor)"
    workers = "2 CPUs (training.num_workers x training.threads_per_worker)"
    assert [str(need) for need in needs_of("attribute", wiring)] == [actors]
    assert [str(need) for need in needs_of("train", wiring)] == [actors, workers]
    assert needs_of("prepare", wiring) == needs_of("report", wiring) == []
    teaching = "1 CPU (teach.num_workers x teach.threads_per_worker)"
    assert {str(need) for need in needs_of("pipeline", wiring)} == {teaching, actors, workers}
    assert [str(need) for need in needs_of("train", on_gpus(wiring, training_labels=ON_DEMAND))] == [
        actors,
        "2 CPUs on nodes with market=on-demand (training.num_workers x training.threads_per_worker)",
        "2 GPUs on nodes with market=on-demand (training.num_workers)",
    ]


def test_gpus_on_a_machine_without_any_are_refused_by_the_keys_that_ask_for_them(wiring: Wiring) -> None:
    refuse_impossible(needs_of("pipeline", wiring), [node(CPU=2)])
    refuse_impossible(needs_of("pipeline", on_gpus(wiring)), [node(CPU=2, GPU=2)])
    with pytest.raises(ConfigError) as raised:
        refuse_impossible(needs_of("pipeline", on_gpus(wiring)), [node(CPU=2, GPU=0)])
    assert str(raised.value).splitlines()[1:-1] == [
        "  1 GPU (teach.num_workers): it has 0",
        "  1 GPU (cluster.min_actors x cluster.gpus_per_actor): it has 0",
        "  2 GPUs (training.num_workers): it has 0",
    ]
    assert "cluster.device: cpu" in str(raised.value)


def test_only_living_nodes_with_the_labels_count() -> None:
    need = Need("key", "GPU", 2, SPOT)
    nodes = [node(SPOT | {"zone": "a"}, GPU=2, CPU=8), node(ON_DEMAND, GPU=4), node(GPU=8), node(SPOT, GPU=1) | {"Alive": False}]
    assert need.among(nodes) == 2


def test_what_a_process_takes_must_be_on_one_node() -> None:
    need = Need("key", "CPU", 8, {}, each=4)
    assert need.among([node(CPU=2)] * 4) == 0
    assert need.among([node(CPU=7), node(CPU=4)]) == 8
    assert Need("key", "GPU", 1, {}, each=0.1).among([node(GPU=1)]) == 1, "ten tenths"
    assert said_of_waiting([need], [node(CPU=2)] * 4, is_patient=True) == (
        "waits for 8 CPUs (key), 4 at a time on one node, of which the cluster has 0"
    )


def test_what_is_said_of_the_cluster_is_what_it_has_not_what_is_asked_of_it() -> None:
    need = Need("key", "CPU", 2, {})
    assert said_of_waiting([need], [node(CPU=3), node(CPU=1)], is_patient=False) == (
        "waits for 2 CPUs (key), of which the cluster has 4: they are starting, or another job holds them"
    )
    assert said_of_waiting([need], [node(CPU=4)], is_patient=True) is None
    assert said_of_waiting([need], [node(CPU=1)], is_patient=True) == "waits for 2 CPUs (key), of which the cluster has 1"


def test_a_job_that_never_fits_on_this_machine_ends_before_its_first_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.pipeline", str(write_mini(tmp_path))]
    command += ["--cluster.local_cpus=3", "--training.num_workers=2", "--training.threads_per_worker=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "4 CPUs (training.num_workers x training.threads_per_worker), 2 at a time on one node: it has 2" in done.stdout
    assert not (tmp_path / "runs" / "mini" / "examples").exists()


# --- a cluster of two nodes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled() -> Iterator[Cluster]:
    ray.shutdown()
    cluster = Cluster()
    memory = {"object_store_memory": 80_000_000}
    cluster.add_node(num_cpus=2, labels=ON_DEMAND, include_dashboard=False, **memory)
    cluster.add_node(num_cpus=2, labels=SPOT, **memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@dataclass(frozen=True)
class ShoutFrom(Shout):
    """Writes down on which node it was opened."""

    folder: str = ""

    def open(self) -> Apply:
        (Path(self.folder) / ray.get_runtime_context().get_node_id()).touch()
        return super().open()


@pytest.mark.parametrize("labels", [SPOT, ON_DEMAND])
def test_actors_run_on_nodes_with_their_labels(labelled: Cluster, tmp_path: Path, labels: dict[str, str]) -> None:
    store, seen = Store.at(str(tmp_path / "run")), tmp_path / "seen"
    seen.mkdir()
    pool = Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0, labels=labels)
    ray_data.run(store, [work(corpus(store), recipe=ShoutFrom(folder=str(seen)))], pool, lambda done, total: None)
    by_id = {found["NodeID"]: found["Labels"]["market"] for found in ray.nodes()}
    assert {by_id[path.name] for path in seen.iterdir()} == {labels["market"]}


@dataclass(frozen=True)
class ShoutLater(Shout):
    """Does nothing before there is a file."""

    signal: str = ""

    def open(self) -> Apply:
        while not Path(self.signal).exists():
            time.sleep(0.05)
        return super().open()


def session_at(address: str | None, wiring: Wiring) -> Session:
    """A session on a running cluster, or for None on one of its own."""
    cluster = wiring.config.cluster.model_copy(update={"address": address})
    config = wiring.config.model_copy(update={"cluster": cluster})
    return Session(config, wiring.store, Console(io.StringIO()), ExitStack())


def test_training_without_workers_says_at_once_what_the_cluster_lacks_and_later_that_it_lacks_nothing(
    labelled: Cluster, wiring: Wiring
) -> None:
    keys = "training.num_workers x training.threads_per_worker"
    three, two = Need(keys, "CPU", 3, ON_DEMAND), Need(keys, "CPU", 2, ON_DEMAND)
    lacking = waiting_for_workers(session_at(labelled.address, wiring), [three])
    assert lacking(0.0) == f"waits for 3 CPUs on nodes with market=on-demand ({keys}), of which the cluster has 2"
    busy = waiting_for_workers(session_at(labelled.address, wiring), [two], patience_s=30.0)
    assert busy(0.0) is None, "workers take a while to start"
    assert busy(31.0) == (
        f"waits for 2 CPUs on nodes with market=on-demand ({keys}), of which the cluster has 2:"
        " they are starting, or another job holds them"
    )
    assert waiting_for_workers(session_at(None, wiring), [three])(99.0) is None


def wait_for_a_look(pool: Pool, up: int, waiting: int) -> Look:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        look = look_around(pool)
        if (len(look.up), look.waiting) == (up, waiting):
            return look
        time.sleep(0.1)
    raise TimeoutError(f"in {DEADLINE_S} s there were no {up} actors beside {waiting} that wait; the last look: {look}")


def test_a_stage_whose_actors_find_no_place_says_how_many_and_what_the_cluster_has(labelled: Cluster, tmp_path: Path) -> None:
    """Two of four actors are at work on all that a label has; the other label's node is free."""
    store, go = Store.at(str(tmp_path / "run")), tmp_path / "go"
    pool = Pool(min_actors=4, max_actors=4, cpus_per_actor=1, gpus_per_actor=0, labels=SPOT)
    now, screen = [0.0], io.StringIO()
    watch = Watch(Console(screen, lambda: now[0]).stage("attribute"), pool)
    arguments = store, [work(corpus(store, 5, 20), recipe=ShoutLater(signal=str(go)))], pool, lambda done, total: None
    stage = threading.Thread(target=ray_data.run, args=arguments)
    stage.start()
    try:
        look = wait_for_a_look(pool, up=2, waiting=2)
        now[0] = PATIENCE_S
        watch.see(look)
    finally:
        go.touch()
        stage.join(DEADLINE_S)
    assert look.asked == 4
    assert screen.getvalue() == (
        "attribute    2 of 4 actors are up, 2 wait for 2 CPUs on nodes with market=spot (cluster.cpus_per_actor): "
        "the cluster has 2, of which 0 are free\n"
    )
    assert {len(look.alive()), sum(node["Resources"].get("CPU", 0) for node in look.nodes)} == {2, 4}
