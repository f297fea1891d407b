"""Trains a queue of runs in Ray Train worker groups, with DeepSpeed.

A start of a group costs 10-20 s and students are many, so a group works through many runs, and several groups work side
by side where there is room. Each run has its own folder, and its manifest is written last: a run whose manifest is there
is skipped. A group that loses a worker is started again and goes on from the last checkpoint of the run that it was in;
a run that ends too many groups is given up, and the others go on. A group that cannot start or live leaves its work to the
others, also to those that had none left: as long as any run is not over, they look for work, and hold no workers meanwhile.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import ray.train
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from kd.errors import Overtaken, StageError, StoreError, UserError
from kd.ray_data import beside_the_driver
from kd.ray_worker import work
from kd.training.progress import Look, Status
from kd.training.roster import End, Roster
from kd.training.runs import Failure, Queue
from kd.training.session import begin

log = logging.getLogger(__name__)

RAY_FILES = "logs/ray"
"""The folder of the run directory for Ray Train's own notes. Checkpoints are no part of them: each run keeps its own."""
WATCHDOG_FIRST_S = 60
"""So much longer than a worker's own patience is that of its collectives: the watchdog can say which worker hung."""
LEAVING_S = 60.0
"""So long groups have to end once all runs are over; one that still waits for room on the cluster is not waited for."""
LOOK_FOR_ROOM_S = 30.0
"""So often it is looked whether the cluster has room for more groups by now."""
_LOOK_S = 1.0
_ANSWER_S = 10.0
"""So long the roster may take to say how far the runs are, before it is asked again."""
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""A worker keeps the memory that it frees. glibc would hand that of every large tensor back to the kernel, which clears it anew
for the next one: on a CPU a tenth of a step, and more where several workers do so at once. It costs 3 % more memory, measured
over ten steps of a small model. A worker with a GPU does not: all that it would keep is the model that it has moved there."""


def train_queue(
    queue: Queue,
    labels: Mapping[str, str] | None = None,
    following: Callable[[Look], AbstractContextManager[None]] | None = None,
) -> None:
    """Train the runs of a queue that are not finished yet. Where there are any, Ray is initialised.

    Args:
        queue: The runs.
        labels: What a node must be labelled with for a worker to run on it; none: any node.
        following: Given what asks for the status of the runs, what is open while there are workers.

    Raises:
        StageError: some runs failed; each has its `kd.training.runs.Failure` in its folder. All others are finished.
        Overtaken: the stage was started once more, on the same run directory.
        UserError: no group of workers could be kept alive to finish the runs.
    """
    todo = begin(queue)
    if not todo:
        return
    groups = groups_that_fit(queue, labels or {}, len(todo))
    roster = beside_the_driver(Roster, queue, groups, todo)
    try:
        with following(_look_at(roster)) if following else nullcontext():
            _side_by_side(queue, labels or {}, roster, groups)
        failures = ray.get(roster.failures.remote())
    finally:
        ray.kill(roster)
    if failures:
        raise StageError(_told(queue, failures))


def _look_at(roster: ActorHandle) -> Look:
    def look(heard: int) -> Status:
        try:
            status: Status = ray.get(roster.status.remote(heard), timeout=_ANSWER_S)
        except RayError:  # what became of the roster, the main thread says
            return Status()
        return status

    return look


def groups_that_fit(queue: Queue, labels: Mapping[str, str], todo: int) -> int:
    """How many groups to start for so many runs: `parallel_runs`, or as many as find room now, at least one."""
    if queue.training.parallel_runs is not None:
        return min(queue.training.parallel_runs, todo)
    return max(1, min(_room(queue, labels, 0), todo))


def _room(queue: Queue, labels: Mapping[str, str], working: int) -> int:
    """How many groups more find room now, beside so many that work.

    A guess is enough: a group without room waits for one that ends. Which node has what is free is not known, so both what
    nodes with these labels have and what is free anywhere are looked at.
    """
    needs = _worker_needs(queue)
    nodes = [node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items()]
    there = sum(min(int(_has(node, name) // amount) for name, amount in needs.items()) for node in nodes)
    resources = ray.available_resources()
    free = min(int(resources.get(name, 0) // amount) for name, amount in needs.items())
    return max(0, min(there // queue.training.num_workers - working, free // queue.training.num_workers))


def _has(node: Mapping[str, object], resource: str) -> float:
    """What a node has. A cluster of one's own claims more CPUs than the machine has, for actors that mostly wait; workers of
    training do not wait.
    """
    amount = float(node["Resources"].get(resource, 0))  # type: ignore[attr-defined]
    is_here = node["NodeID"] == ray.get_runtime_context().get_node_id()
    return min(amount, os.cpu_count() or 1) if is_here and resource == "CPU" else amount


def _worker_needs(queue: Queue) -> dict[str, float]:
    """What one worker asks for."""
    gpus = {"GPU": 1.0} if queue.device == "cuda" else {}
    return {"CPU": float(queue.training.threads_per_worker)} | gpus


class _Group(threading.Thread):
    """Keeps one worker group at work until all runs are over; whatever ended this before that is its `error`.

    A thread, as `fit` blocks; it ends with the process, whose end also ends its workers.
    """

    def __init__(self, queue: Queue, roster: ActorHandle, number: int, labels: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.queue, self.roster, self.number, self.labels = queue, roster, number, labels
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self._idle_losses = 0

    def run(self) -> None:
        try:
            while not self.stopped.is_set() and not ray.get(self.roster.is_over.remote()):
                if ray.get(self.roster.has_work.remote(self.number)):
                    self._work()
                else:
                    self.stopped.wait(_LOOK_S)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            if not self.stopped.is_set():  # else the main thread ends, and Ray with it
                with suppress(RayError):
                    ray.get(self.roster.give_back.remote(self.number))
            self.error = error

    def _work(self) -> None:
        """One life of the group, or a while of waiting for room. It ends for good if it dies again and again in no run."""
        try:
            _trainer(self.queue, self.labels, self.roster, self.number).fit()
        except ray.train.TrainingFailedError as error:
            if not isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
                self._bear(error)
        finally:
            if not self.stopped.is_set():
                ray.get(self.roster.gone.remote(self.number, None))

    def _bear(self, error: ray.train.TrainingFailedError) -> None:
        """Tell the roster of a death. Workers that never came to work say nothing about the run that is to be gone on with."""
        cause = root_cause(error)
        log.warning("group %d of %s has ended: %s", self.number, self.queue.stage, error)
        if isinstance(cause, Overtaken):
            raise cause from error
        if not isinstance(error, ray.train.ControllerError):
            end = End(str(cause), again=not is_final(error))
            if ray.get(self.roster.gone.remote(self.number, end)):
                self._idle_losses = 0
                return
        self._idle_losses += 1
        if self._idle_losses > self.queue.training.max_failures:
            raise cause from error


def _side_by_side(queue: Queue, labels: Mapping[str, str], roster: ActorHandle, count: int) -> None:
    """Let so many groups work until all runs are over, and more where there is room later. The main thread stays free for an
    interrupt.

    Raises:
        UserError: what ended the groups, where none is left and there is work yet.
    """
    groups = [_started(_Group(queue, roster, number, labels)) for number in range(count)]
    looked_s = time.monotonic()
    try:
        while True:
            working = sum(group.is_alive() for group in groups)
            if ray.get(roster.is_over.remote()):
                break
            _raise_what_ends_all(groups, working)
            if time.monotonic() - looked_s > LOOK_FOR_ROOM_S:
                looked_s = time.monotonic()
                more = _more(groups, working)
                groups += [_started(_Group(queue, roster, len(groups) + number, labels)) for number in range(more)]
            _pause(groups)
    finally:
        for group in groups:
            group.stopped.set()
    deadline = time.monotonic() + LEAVING_S
    for group in groups:
        group.join(max(0.0, deadline - time.monotonic()))


def _started(group: _Group) -> _Group:
    group.start()
    return group


def _pause(groups: Sequence[_Group]) -> None:
    """A moment, which the end of a group cuts short."""
    working = [group for group in groups if group.is_alive()]
    if working:
        working[0].join(_LOOK_S)
    else:
        time.sleep(_LOOK_S)


def _raise_what_ends_all(groups: Sequence[_Group], working: int) -> None:
    """One group that ends early leaves its work to the others, unless there are none, or all are overtaken."""
    for group in groups:
        if group.error is not None and (not working or isinstance(group.error, Overtaken)):
            raise group.error


def _more(groups: Sequence[_Group], working: int) -> int:
    """How many groups to start besides: for runs that wait, while the cluster has room and no group has failed to live in it."""
    first = groups[0]
    if first.queue.training.parallel_runs is not None or any(group.error for group in groups):
        return 0
    waiting: int = ray.get(first.roster.unattended.remote(working))
    return min(waiting, _room(first.queue, first.labels, working)) if waiting else 0


def _trainer(queue: Queue, labels: Mapping[str, str], roster: ActorHandle | None, group: int = 0) -> TorchTrainer:
    """One life of a worker group: that it is started again is not Ray Train's decision, which knows nothing of runs.

    Nor is how long to wait for room: Ray Train would ask for it until the process ends, long after the last run perhaps, and
    have no end of patience with workers that die while they start.
    """
    training, use_gpu = queue.training, queue.device == "cuda"
    filesystem, ray_files = queue.store.for_libraries(RAY_FILES)
    return TorchTrainer(
        work,
        train_loop_config={"queue": queue, "roster": roster, "group": group},
        torch_config=TorchConfig(timeout_s=math.ceil(training.step_timeout_s) + WATCHDOG_FIRST_S),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=_worker_needs(queue),
            label_selector=dict(labels) or None,
        ),
        run_config=RunConfig(
            name=f"{queue.stage}-{group}",
            storage_path=ray_files,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": KEEP_MEMORY if queue.device == "cpu" else {}},
        ),
    )


def root_cause(error: Exception) -> UserError:
    """What a person should read of a failed group: a user's mistake, else the error that is not a mere loss of contact."""
    failures = _worker_failures(error)
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    told = {rank: failure for rank, failure in failures.items() if not _is_lost_contact(failure)} or failures
    said = [_said_of(rank, failure) for rank, failure in told.items()]
    return StageError(f"a training worker failed: {said[0] if said else repr(error)}")


def _said_of(rank: int, failure: BaseException) -> str:
    """How a worker ended: with an error of its own, or with its process or its node, of which Ray tells at length."""
    cause = getattr(failure, "health_check_failure", None)
    if not isinstance(cause, RayActorError | OutOfMemoryError):
        return repr(failure)
    if isinstance(cause, OutOfMemoryError):
        return f"the process of rank {rank} was ended by Ray, as its machine ran out of memory"
    lost = next((node for node in ray.nodes() if node["NodeID"] in str(cause) and not node["Alive"]), None)
    if lost is not None or "node has died" in str(cause) or "node was terminated" in str(cause):
        return f"the node of rank {rank} was lost" + (f" ({lost['NodeManagerAddress']})" if lost else "")
    return f"the process of rank {rank} died"


def is_final(error: Exception) -> bool:
    """Whether a worker said why it failed, and trying again would not mend it; a file system may be well again."""
    said = [failure for failure in _worker_failures(error).values() if isinstance(failure, UserError)]
    return bool(said) and not isinstance(said[0], StoreError)


def _worker_failures(error: Exception) -> dict[int, BaseException]:
    """What each rank that failed met."""
    return {rank: getattr(failure, "_base_exc", failure) for rank, failure in getattr(error, "worker_failures", {}).items()}


def _is_lost_contact(failure: BaseException) -> bool:
    """The echo of another worker's death: its peers only see a closed connection."""
    return any(sign in str(failure).lower() for sign in ("connection reset", "connection closed", "broken pipe"))


def _told(queue: Queue, failures: Sequence[Failure]) -> str:
    """Which runs failed and why, and what to do."""
    why = "\n".join(f"  {each.run} at step {each.step} (attempts: {each.attempts}): {each.error}" for each in failures)
    return (
        f"{queue.stage}: {len(failures)} of {len(queue.items)} runs failed; the others are finished and kept, and the same"
        f" command tries the failed ones again:\n{why}"
    )
