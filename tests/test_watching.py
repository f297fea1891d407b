"""What is said of nodes and actors while a stage runs; the looks at the cluster are as Ray describes one."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from jobs.console import Console
from jobs.watching import AGAIN_S, PATIENCE_S, Look, Watch
from kd.ray_data import Pool

SPOT = {"market": "spot"}
POOL = Pool(min_actors=4, max_actors=4, cpus_per_actor=1, gpus_per_actor=0)
EXPECTED, UNEXPECTED, PREEMPTED = 1, 2, 3
KEPT = "finished shards are kept, and what it had in hand is done again elsewhere"


def node(name: str, alive: bool = True, reason: int = 0, labels: Mapping[str, str] | None = None, **has: float) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerAddress": f"10.0.0.{ord(name)}",
        "Alive": alive,
        "DeathReason": reason,
        "Labels": labels or {},
        "Resources": has or {"CPU": 2.0},
    }


class Stage:
    """A stage that is watched, with a clock of its own."""

    def __init__(self, pool: Pool | None = POOL) -> None:
        self.now_s = 0.0
        self.screen = io.StringIO()
        self.line = Console(self.screen, lambda: self.now_s).stage("attribute")
        self.watch = Watch(self.line, pool)

    def said(self, now_s: float, look: Look) -> list[str]:
        """What this look, at this time, adds."""
        self.now_s, before = now_s, len(self.screen.getvalue())
        self.watch.see(look)
        return self.screen.getvalue()[before:].splitlines()


def look(up: Sequence[str], asked: int = 4, waiting: int = 0, free: float = 0, nodes: Sequence[dict[str, Any]] = ()) -> Look:
    nodes = nodes or [node("a"), node("b")]
    return Look(nodes, {each["NodeID"]: {"CPU": free} for each in nodes}, up, asked, waiting)


def test_a_lost_node_is_said_at_once_with_what_was_on_it_and_the_recovery_where_it_took_time() -> None:
    stage = Stage()
    stage.line.moved = True
    lost = [node("a"), node("b", alive=False, reason=UNEXPECTED)]
    assert stage.said(2, look(["a", "a", "b", "b"])) == []
    assert stage.said(4, look(["a", "a"], waiting=2, nodes=lost)) == [
        f"attribute    a node was lost: 10.0.0.98, with 2 of 4 actors; {KEPT}"
    ]
    assert stage.said(6, look(["a", "a"], waiting=2, nodes=lost)) == []
    waits = (
        "attribute    2 of 4 actors are up, 2 wait for 2 CPUs (cluster.cpus_per_actor): the cluster has 2, of which 0 are free"
    )
    assert stage.said(4 + PATIENCE_S, look(["a", "a"], waiting=2, nodes=lost)) == [waits]
    assert stage.said(6 + PATIENCE_S, look(["a", "a"], waiting=2, nodes=lost)) == []
    assert stage.said(4 + PATIENCE_S + AGAIN_S, look(["a", "a"], waiting=2, nodes=lost)) == [waits]
    replaced = [*lost, node("c")]
    assert stage.said(400, look(["a", "a", "c", "c"], nodes=replaced)) == ["attribute    4 of 4 actors are up again"]
    assert stage.said(402 + AGAIN_S, look(["a", "a", "c", "c"], nodes=replaced)) == []


def test_actors_that_are_up_again_soon_need_no_word() -> None:
    stage = Stage()
    stage.line.moved = True
    lost = [node("a"), node("b", alive=False, reason=PREEMPTED)]
    stage.said(2, look(["a", "b"], asked=2))
    assert len(stage.said(4, look(["a"], asked=2, nodes=lost))) == 1
    assert stage.said(6, look(["a", "a"], asked=2, nodes=lost)) == []
    assert stage.said(100, look(["a", "a"], asked=2, nodes=lost)) == []


@pytest.mark.parametrize(
    ("reason", "on_it", "said"),
    [
        (EXPECTED, [], []),  # the autoscaler has taken an idle node away
        (EXPECTED, ["b"], [f"attribute    a node was lost: 10.0.0.98, with 1 of 2 actors; {KEPT}"]),
        (UNEXPECTED, [], [f"attribute    a node was lost: 10.0.0.98, with 0 of 2 actors; {KEPT}"]),
    ],
)
def test_an_idle_node_that_was_meant_to_go_is_no_loss(reason: int, on_it: list[str], said: list[str]) -> None:
    stage = Stage()
    stage.said(2, look(["a", *on_it], asked=2))
    assert stage.said(4, look(["a"], asked=2, nodes=[node("a"), node("b", alive=False, reason=reason)])) == said


def test_a_node_that_is_no_longer_listed_is_lost_too() -> None:
    stage = Stage()
    stage.said(2, look(["a", "b"], asked=2))
    assert stage.said(4, look(["a"], asked=2, nodes=[node("a")])) == [
        f"attribute    a node was lost: 10.0.0.98, with 1 of 2 actors; {KEPT}"
    ]


def test_a_stage_of_tasks_tells_of_lost_nodes_and_of_nothing_else() -> None:
    stage = Stage(pool=None)
    assert stage.said(2, Look([node("a"), node("b")], {})) == []
    lost = Look([node("a"), node("b", alive=False, reason=UNEXPECTED)], {})
    assert stage.said(100, lost) == [f"attribute    a node was lost: 10.0.0.98; {KEPT}"]


def test_a_look_that_failed_says_nothing() -> None:
    stage = Stage()
    stage.said(2, look(["a", "b"], asked=2))
    assert stage.said(4, Look([], {})) == []
    assert stage.said(6, look(["a", "b"], asked=2)) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (look([], asked=0), "its actors are not asked for yet"),
        (look(["a"], asked=3), "1 of 3 actors are up, the others are starting"),
        (look(["a", "b"], asked=2), "2 of 2 actors are up, at work on their first shards"),
        (
            look(["a"], waiting=3, free=0.5),
            "1 of 4 actors are up, 3 wait for 3 CPUs (cluster.cpus_per_actor): the cluster has 4, of which 0 are free",  # half a CPU on each of two nodes
        ),
    ],
)
def test_a_stage_that_has_done_nothing_for_a_while_says_what_is_known(seen: Look, said: str) -> None:
    stage = Stage()
    assert stage.said(PATIENCE_S - 1, seen) == []
    assert stage.said(PATIENCE_S, seen) == [f"attribute    {said}"]
    assert stage.said(PATIENCE_S + 2, seen) == []
    assert stage.said(PATIENCE_S + AGAIN_S, seen) == ([f"attribute    {said}"] if seen.waiting else [])


def test_a_stage_that_has_done_something_says_nothing_of_its_actors() -> None:
    stage = Stage()
    stage.line.moved = True
    assert stage.said(PATIENCE_S, look(["a"], waiting=3)) == []


def test_gpus_are_counted_on_nodes_with_the_labels_only() -> None:
    stage = Stage(Pool(min_actors=2, max_actors=2, cpus_per_actor=1, gpus_per_actor=0.5, labels=SPOT))
    nodes = [node("a", labels=SPOT, CPU=8, GPU=1), node("b", CPU=8, GPU=4)]
    seen = Look(nodes, {"a": {"CPU": 8}, "b": {"CPU": 8, "GPU": 4}}, ["a", "a"], 4, 2)
    assert stage.said(PATIENCE_S, seen) == [
        "attribute    2 of 4 actors are up, 2 wait for 1 GPU on nodes with market=spot (cluster.gpus_per_actor): "
        "the cluster has 1, of which 0 are free"
    ]


def test_the_rate_is_counted_in_rounds_of_the_actors_that_are_up() -> None:
    stage = Stage()
    stage.said(2, look(["a", "a", "b"]))
    assert stage.line.pace.workers == 3
