"""The node that trains is lost and none takes its place: what a person is told meanwhile, and how the job ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS
from tests.mini import mini_config, prepared, write_mini

ROOT = Path(__file__).parents[1]
DEADLINE_S = 300
LABELS = {"market": "on-demand"}


@pytest.fixture
def cluster_of_two() -> Iterator[Cluster]:
    """A head for all but training, and a node for that."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 100_000_000})
    cluster.add_node(num_cpus=2, labels=LABELS, object_store_memory=100_000_000)
    yield cluster
    cluster.shutdown()


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_is_one_line_its_wait_another_and_an_interrupt_ends_it(cluster_of_two: Cluster, tmp_path: Path) -> None:
    path = write_mini(tmp_path)
    config = mini_config(path)
    prepared(config)
    command = [sys.executable, "-m", "jobs.teach", str(path), f"--cluster.address={cluster_of_two.address}"]
    command += ["--cluster.training_labels.market=on-demand", "--teach.num_workers=2", "--teach.threads_per_worker=1"]
    command += ["--teach.steps=1000000", "--teach.save_every_steps=20", "--teach.eval_every_steps=1000000"]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    said: list[str] = []
    assert job.stdout is not None
    listener = threading.Thread(target=said.extend, args=(job.stdout,), daemon=True)
    listener.start()
    try:
        saved = Path(config.directory, "teacher", CHECKPOINTS)
        wait_until(lambda: list(saved.glob(f"*/{CHECKPOINT_MANIFEST}")) or job.poll() is not None, "no checkpoint")
        wait_until(lambda: "step " in "".join(said) or job.poll() is not None, "no line of progress")
        assert job.poll() is None, "".join(said)
        cluster_of_two.remove_node(next(iter(cluster_of_two.worker_nodes)), allow_graceful=False)
        wait_until(lambda: "waits for" in "".join(said), f"nothing was said of the loss: {said}")
        time.sleep(20)  # longer than a log waits between two lines of progress
    finally:
        job.send_signal(signal.SIGINT)
        code = job.wait(timeout=120)
        listener.join(30)
    text = "".join(said)
    (loss,) = [line for line in text.splitlines() if "interrupted (" in line]
    assert " was lost" in loss
    assert "the node of rank " in loss
    assert "; it goes on from step " in loss
    waits = "waits for 2 CPUs on nodes with market=on-demand (teach.num_workers x teach.threads_per_worker), of which the cluster has 0"
    after = text[text.index("interrupted (") :].splitlines()[1:]
    assert [line for line in after if line.startswith("teach  ")] == [f"teach        {waits}"], "and no stale progress"
    assert code == 130, text
    assert "Traceback" not in text
    assert "interrupted: what is finished is kept" in text
