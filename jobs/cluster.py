"""The cluster of a job: connecting to it, and whether it has what the config asks for.

A local cluster of the job's own never grows, so what does not fit in it is refused. Any other may grow or become free:
there waiting is right, and `jobs.watching` says what for.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from jobs import interrupts
from jobs.cli import Session, cluster_address
from jobs.wiring import Wiring
from kd.cluster_config import ClusterConfig
from kd.errors import ConfigError, StageError
from kd.portions import exact
from kd.ray_data import Pool
from kd.training.config import LoopConfig

PATIENCE_S = 30.0
"""Processes that start take some time, and nothing is said of it for so long."""


@dataclass(frozen=True)
class Need:
    """So much of a resource (`CPU` or `GPU`), asked for at once on nodes with these labels. The keys of the config say so.

    Every process takes `each` of it, all on one node.
    """

    keys: str
    resource: str
    amount: float
    labels: Mapping[str, str]
    each: float = 1.0

    def among(self, nodes: Sequence[Mapping[str, Any]]) -> float:
        """How much of it these nodes, as `ray.nodes()` describes them, have for such processes in all."""
        fit = [node for node in nodes if node["Alive"] and self.labels.items() <= node["Labels"].items()]
        return float(sum(exact(node["Resources"].get(self.resource, 0)) // exact(self.each) for node in fit) * exact(self.each))

    def __str__(self) -> str:
        where = ", ".join(f"{key}={value}" for key, value in self.labels.items())
        what = f"{self.amount:g} {self.resource}{'' if self.amount == 1 else 's'}"
        together = f", {self.each:g} at a time on one node" if self.each > 1 else ""
        return what + (f" on nodes with {where}" if where else "") + f" ({self.keys}){together}"


def each_actor(pool: Pool) -> tuple[str, float, str]:
    """What an actor of a pool asks for: the resource, how much of it, and the config's key for that."""
    resource, each = ("GPU", pool.gpus_per_actor) if pool.gpus_per_actor else ("CPU", pool.cpus_per_actor)
    return resource, each, f"cluster.{resource.lower()}s_per_actor"


def of_pool(pool: Pool) -> list[Need]:
    """What the actors of a pool ask for at once."""
    resource, each, key = each_actor(pool)
    return [Need(f"cluster.min_actors x {key}", resource, pool.min_actors * each, pool.labels, each)]


def of_workers(section: str, training: LoopConfig, cluster: ClusterConfig) -> list[Need]:
    """What a training group asks for; `section` of the config describes it."""
    cpus, keys = training.num_workers * training.threads_per_worker, f"{section}.num_workers x {section}.threads_per_worker"
    needs = [Need(keys, "CPU", cpus, cluster.training_labels, training.threads_per_worker)]
    if cluster.device == "cuda":
        needs.append(Need(f"{section}.num_workers", "GPU", training.num_workers, cluster.training_labels))
    return needs


def needs_of(job: str, works: Wiring) -> list[Need]:
    """What a job asks for; the pipeline asks for what all its stages do."""
    config, cluster = works.config, works.config.cluster
    teaching = of_workers("teach", config.teach, cluster) if config.teach else []
    by_job = {
        "teach": [*of_pool(works.cpu_pool), *teaching],
        "attribute": of_pool(works.pool),
        "rationalize": of_pool(works.cpu_pool),
        "audit": of_pool(works.pool),
        "train": [*of_pool(works.cpu_pool), *of_workers("training", config.training, cluster)],
        "evaluate": of_pool(works.pool),
    }
    return [need for name, needs in by_job.items() if job in (name, "pipeline") for need in needs]


def refuse_impossible(needs: Sequence[Need], nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError where these nodes, which are all that there will ever be, have less than is needed."""
    short = [f"  {need}: it has {need.among(nodes):g}" for need in needs if need.among(nodes) < need.amount]
    if short:
        asked = "\n".join(dict.fromkeys(short))
        raise ConfigError(
            f"a local cluster never grows, and this one can never give what the config asks for:\n{asked}\n"
            "Lower that (cluster.device: cpu asks for no GPU), raise cluster.local_cpus, or name a cluster in cluster.address"
        )


@contextmanager
def connected(session: Session) -> Iterator[None]:
    """A Ray cluster for the length of a job: the one named, the one submitted to, or a local one of its own.

    Raises:
        ConfigError: the local one could never give what the job asks for.
        StageError: no cluster answers.
    """
    address = cluster_address(session.config.cluster)
    try:
        with interrupts.kept():
            ray.init(**({"address": address} if address else _local(session.config.cluster)))
    except ConnectionError as error:
        raise StageError(f"no Ray cluster answers at {address}: {error}; start one, or leave cluster.address empty") from error
    try:
        if address is None:
            refuse_impossible(needs_of(session.job, Wiring(session.config, session.store)), ray.nodes())
        yield
    finally:
        ray.shutdown()


def _local(cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": cluster.local_cpus or 2 * (os.cpu_count() or 1),
        "object_store_memory": cluster.local_object_store_bytes,
        "include_dashboard": False,
    }


def waiting_for_workers(session: Session, needs: Sequence[Need], patience_s: float = PATIENCE_S) -> Callable[[float], str | None]:
    """What to say of training that has waited so many seconds for workers.

    What the cluster lacks is said at once. If it lacks nothing, that is said after `patience_s`. Of a local cluster nothing is
    said: its workers only take their time to start.
    """

    def waiting(waited_s: float) -> str | None:
        return said_of_waiting(needs, ray.nodes(), is_patient=waited_s < patience_s)

    return waiting if cluster_address(session.config.cluster) is not None else lambda _: None


def said_of_waiting(needs: Sequence[Need], nodes: Sequence[Mapping[str, Any]], is_patient: bool) -> str | None:
    """What these nodes lack. If they lack nothing: None while one is patient, else what they have in all."""
    short = [need for need in needs if need.among(nodes) < need.amount]
    if is_patient and not short:
        return None
    said = " and ".join(f"{need}, of which the cluster has {need.among(nodes):g}" for need in short or needs)
    return f"waits for {said}{'' if short else ': they are starting, or another job holds them'}"
