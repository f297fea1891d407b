"""What becomes of a stage's nodes and actors while it runs: a node that is lost, actors that start, actors that wait."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state
from ray._private.worker import global_worker
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.exceptions import RayError

from jobs.cluster import PATIENCE_S, Need, each_actor
from jobs.console import Line
from kd.ray_data import Pool, ShardWorker

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""So often the cluster is asked; that takes it some milliseconds."""
AGAIN_S = 300.0
"""So often it is said again that actors wait for resources."""
AFTER_A_LOSS = "finished shards are kept, and what it had in hand is done again elsewhere"
LOST = (2, 3)
"""Why Ray calls a node dead that nobody meant to end: it is not heard of, or its provider takes it away."""


@dataclass(frozen=True)
class Look:
    """The cluster at one moment."""

    nodes: Sequence[Mapping[str, Any]]
    """As `ray.nodes()` describes them, dead ones too."""
    free: Mapping[str, Mapping[str, float]]
    """What no process holds of each node's resources, by the node's id."""
    up: Sequence[str] = ()
    """The node of every actor of the stage that is up."""
    asked: int = 0
    """How many actors the stage has asked for, and has not given back."""
    waiting: int = 0
    """How many of them have no place on a node yet."""

    def alive(self) -> dict[str, str]:
        """The address of every living node, by its id."""
        return {node["NodeID"]: node["NodeManagerAddress"] for node in self.nodes if node["Alive"]}

    def free_nodes(self) -> list[dict[str, Any]]:
        """The nodes, each with only what is free of it."""
        return [{**node, "Resources": self.free.get(node["NodeID"], {})} for node in self.nodes]


class Watch:
    """Says what is worth a line, one look at the cluster after the other."""

    def __init__(self, line: Line, pool: Pool | None) -> None:
        self.line = line
        self.pool = pool
        self._last: Look | None = None
        self._since_s = line.console.clock()
        self._told_s: float | None = None
        self._recovers = False

    def see(self, look: Look) -> None:
        """Compare with the look before; what has happened is said. A look that finds no living node has failed."""
        if not look.alive():
            return
        self._tell_of_losses(look)
        self._last = look
        self.line.pace.workers = max(1, len(look.up))
        if self.pool is not None:
            self._tell_of_actors(look, self.pool)

    def _tell_of_losses(self, look: Look) -> None:
        before, alive = self._last, look.alive()
        for node, address in before.alive().items() if before else ():
            on_it = Counter(before.up)[node] if before else 0
            if node not in alive and (on_it or _reason(look, node) in LOST):
                actors = f", with {on_it} of {before.asked} actors" if before and before.asked else ""
                self.line.say(f"a node was lost: {address}{actors}; {AFTER_A_LOSS}")
                self._recovers = self._recovers or on_it > 0
                self._since_s, self._told_s = self.line.console.clock(), None

    def _tell_of_actors(self, look: Look, pool: Pool) -> None:
        now_s, complete = self.line.console.clock(), len(look.up) == look.asked > 0
        if self._recovers and complete:
            if self._told_s is not None:
                self.line.say(f"{_are_up(look)} again")
            self._recovers = False
        if (self.line.moved and not self._recovers) or now_s - self._since_s < PATIENCE_S:
            return
        if self._told_s is None or (look.waiting and now_s - self._told_s >= AGAIN_S):
            self._told_s = now_s
            self.line.say(_said_of_actors(look, pool))


def _said_of_actors(look: Look, pool: Pool) -> str:
    if not look.asked:
        return "its actors are not asked for yet"
    if len(look.up) == look.asked:
        return f"{_are_up(look)}, at work on their first shards"
    if not look.waiting:
        return f"{_are_up(look)}, the others are starting"
    resource, each, keys = each_actor(pool)
    need = Need(keys, resource, look.waiting * each, pool.labels, each)
    there, free = need.among(look.nodes), need.among(look.free_nodes())
    return f"{_are_up(look)}, {look.waiting} wait for {need}: the cluster has {there:g}, of which {free:g} are free"


def _are_up(look: Look) -> str:
    return f"{len(look.up)} of {look.asked} actors are up"


def _reason(look: Look, node: str) -> int:
    return next((int(found["DeathReason"]) for found in look.nodes if found["NodeID"] == node), LOST[0])


@contextmanager
def watched(line: Line, pool: Pool | None = None) -> Iterator[None]:
    """Inside, a stage runs on the cluster that this process is connected to, in a pool or in tasks, and is watched."""
    watch, ended = Watch(line, pool), threading.Event()

    def follow() -> None:
        is_over = False
        while not is_over:
            is_over = ended.wait(LOOK_S)  # a last look tells of a loss right before the end
            try:
                watch.see(look_around(pool))
            except RayError as error:  # what becomes of the cluster's head, the stage itself says
                log.warning("cannot look at the cluster: %s", error)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(LOOK_S)


def look_around(pool: Pool | None) -> Look:
    """Ask the cluster of this process."""
    nodes, free = ray.nodes(), state.available_resources_per_node()
    if pool is None:
        return Look(nodes, free)
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found = [actor for actor in state.actors(job_id=job).values() if ShardWorker.__name__ in actor["ActorClassName"]]
    asked = [actor for actor in found if actor["State"] != "DEAD"]
    up = [actor["Address"]["NodeID"] for actor in asked if actor["State"] == "ALIVE"]
    return Look(nodes, free, up, len(asked), min(_pending(pool), len(asked) - len(up)))


def _pending(pool: Pool) -> int:
    """How many requests for an actor's resources on its nodes no node could grant yet, as `ray status` counts them."""
    resource, each, _ = each_actor(pool)
    wanted = {resource: float(each)}, {key: [value] for key, value in pool.labels.items()}
    asked_for = get_cluster_resource_state(global_worker.gcs_client).pending_resource_requests
    return sum(many.count for many in asked_for if _shape(many.request) == wanted)


def _shape(request: Any) -> tuple[dict[str, float], dict[str, list[str]]]:
    """The resources and the labels that a request asks for."""
    labels = [each for selector in request.label_selectors for each in selector.label_constraints]
    return dict(request.resources_bundle), {each.label_key: list(each.label_values) for each in labels}
