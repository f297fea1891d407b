"""What becomes of groups of workers that cannot start, die or are overtaken. In place of workers, lives that are made up."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import ray.train
from ray.actor import ActorHandle
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from kd import ray_train
from kd.errors import Overtaken, StageError, StoreError
from kd.manifests import Manifest
from kd.ray_train import train_queue
from kd.training.progress import Finished, Look, Status
from kd.training.roster import End
from kd.training.runs import Queue, failure
from tests.tiny_runs import SHORT, tiny_queue

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]
GROUP = SHORT.model_copy(update={"max_failures": 1, "parallel_runs": 1})
NO_ROOM = ControllerError(WorkerGroupStartupTimeoutError(1))
NO_START = ControllerError(WorkerGroupStartupFailedError("a worker died while it started"))
WAIT_S = 60


class Lives:
    """The lives of every group, in place of `fit`. Each is a function of the queue, the roster and the group's number."""

    def __init__(self, *lives: Callable[[Queue, ActorHandle, int], None], also: Sequence[Callable[..., None]] = ()) -> None:
        self.lives = [list(lives), list(also)]
        self.lived = [0, 0]

    def __call__(self, queue: Queue, labels: object, roster: ActorHandle, group: int) -> "Life":
        return Life(self, queue, roster, group)


class Life:
    """One of them; the last one is lived again and again."""

    def __init__(self, lives: Lives, queue: Queue, roster: ActorHandle, group: int) -> None:
        self.lives, self.queue, self.roster, self.group = lives, queue, roster, group

    def fit(self) -> None:
        mine, number = self.lives.lives[self.group], self.lives.lived[self.group]
        self.lives.lived[self.group] += 1
        mine[min(number, len(mine) - 1)](self.queue, self.roster, self.group)


def works(queue: Queue, roster: ActorHandle, group: int) -> None:
    """All that is left."""
    while (position := ray.get(roster.take.remote(group))) is not None:
        item = queue.items[position]
        done = Manifest(stage="train", digest=item.digest, config={}, inputs={}, shards=[], rows=1, device="cpu", seconds=1.0)
        queue.store.publish_manifest(item.folder, done)
        ray.get(roster.ended.remote(group, End()))


def dies(error: Exception) -> Callable[[Queue, ActorHandle, int], None]:
    """Before it comes to any run."""

    def life(queue: Queue, roster: ActorHandle, group: int) -> None:
        raise error

    return life


def dies_in_a_run(error: Exception) -> Callable[[Queue, ActorHandle, int], None]:
    """After it took one."""

    def life(queue: Queue, roster: ActorHandle, group: int) -> None:
        ray.get(roster.take.remote(group))
        raise WorkerGroupError("a worker said so", {0: error})

    return life


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lives], Lives]:
    def script(lives: Lives) -> Lives:
        monkeypatch.setattr(ray_train, "_trainer", lives)
        return lives

    return script


def queue_at(folder: Path, **changes: object) -> Queue:
    return tiny_queue(folder, GROUP.model_copy(update=changes))


def test_waiting_for_room_is_no_failure_however_long_it_takes(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue, lives = queue_at(tmp_path, max_failures=0), live(Lives(*[dies(NO_ROOM)] * 5, works))
    train_queue(queue)
    assert queue.todo() == []
    assert lives.lived == [6, 0]


def test_workers_that_die_while_they_start_are_not_started_for_ever(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue, lives = queue_at(tmp_path, max_failures=2), live(Lives(dies(NO_START)))
    with pytest.raises(StageError, match="a training worker failed: .*a worker died while it started"):
        train_queue(queue)
    assert lives.lived == [3, 0]
    assert [failure(queue.store, item.run, queue.training) for item in queue.items] == [None, None], "no run is to blame"


def test_deaths_in_no_run_are_counted_anew_once_the_group_came_to_one(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue = queue_at(tmp_path)
    lives = live(Lives(dies(NO_START), dies_in_a_run(ValueError("a defect")), dies(NO_START), works))
    train_queue(queue)
    assert queue.todo() == []
    assert lives.lived == [4, 0]


def test_a_group_that_cannot_start_leaves_all_runs_to_one_that_can(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    given_up = threading.Event()

    def patient(queue: Queue, roster: ActorHandle, group: int) -> None:
        assert given_up.wait(WAIT_S)
        works(queue, roster, group)

    def hopeless(queue: Queue, roster: ActorHandle, group: int) -> None:
        if lives.lived[1] == 3:
            given_up.set()
        raise NO_START

    queue = queue_at(tmp_path, parallel_runs=2, max_failures=2)
    lives = live(Lives(patient, also=[hopeless]))
    train_queue(queue)
    assert queue.todo() == []
    assert lives.lived[1] == 3


def test_a_run_whose_group_ends_for_good_is_gone_on_with_by_another(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    begun = threading.Event()

    def patient(queue: Queue, roster: ActorHandle, group: int) -> None:
        assert ray.get(roster.take.remote(group)) is not None
        assert begun.wait(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while not ray.get(roster.unattended.remote(1)) and time.monotonic() < deadline:
            time.sleep(0.05)
        works(queue, roster, group)

    def begins(queue: Queue, roster: ActorHandle, group: int) -> None:
        ray.get(roster.take.remote(group))
        begun.set()
        raise NO_START

    queue = queue_at(tmp_path, parallel_runs=2, max_failures=1)
    live(Lives(patient, also=[begins, dies(NO_START)]))
    train_queue(queue)
    assert queue.todo() == []


def test_a_run_that_is_left_when_the_others_have_no_more_to_do_is_gone_on_with_by_one_of_them(
    tmp_path: Path, live: Callable[[Lives], Lives]
) -> None:
    begun = threading.Event()

    def patient(queue: Queue, roster: ActorHandle, group: int) -> None:
        assert begun.wait(WAIT_S)
        works(queue, roster, group)

    def lasts(queue: Queue, roster: ActorHandle, group: int) -> None:
        """Until nothing is left but its own run, and the other group has seen that."""
        ray.get(roster.take.remote(group))
        begun.set()
        deadline = time.monotonic() + WAIT_S
        while ray.get(roster.has_work.remote(1 - group)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)
        raise NO_START

    queue = queue_at(tmp_path, parallel_runs=2, max_failures=0)
    lives = live(Lives(patient, also=[lasts]))
    train_queue(queue)
    assert queue.todo() == []
    assert lives.lived == [2, 1], "without work no workers are held"


def test_the_roster_tells_of_every_run_while_groups_work(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue, seen = queue_at(tmp_path), list[Status]()

    @contextmanager
    def following(look: Look) -> Iterator[None]:
        seen.append(look(0))
        yield
        seen.append(look(1))

    live(Lives(works))
    train_queue(queue, following=following)
    train_queue(queue, following=following)
    before, after = seen
    assert before == Status(waits=True), "and where nothing is to be done, nothing is followed"
    assert [type(news) for news in after.news] == [Finished], "the first was heard before"
    assert not after.waits


def test_an_error_that_trying_again_would_not_mend_ends_a_run_at_once_and_no_other(
    tmp_path: Path, live: Callable[[Lives], Lives]
) -> None:
    queue = queue_at(tmp_path, max_failures=3)
    live(Lives(dies_in_a_run(StageError("the device has too little memory")), works))
    with pytest.raises(StageError, match=r"1 of 2 runs failed(.|\n)*\(attempts: 1\): the device has too little memory"):
        train_queue(queue)
    assert [item.run.name for item in queue.todo()] == ["words/0"]


def test_a_file_system_that_refuses_counts_as_a_lost_worker(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue = queue_at(tmp_path, max_failures=1)
    live(Lives(dies_in_a_run(StoreError("503")), works))
    train_queue(queue)
    assert queue.todo() == []


def test_a_job_that_was_overtaken_stops_and_blames_no_run(tmp_path: Path, live: Callable[[Lives], Lives]) -> None:
    queue = queue_at(tmp_path, max_failures=3, parallel_runs=2)
    over = threading.Event()

    def goes_on(queue: Queue, roster: ActorHandle, group: int) -> None:
        ray.get(roster.take.remote(group))
        over.wait(WAIT_S)

    live(Lives(dies_in_a_run(Overtaken("another job has started this stage")), also=[goes_on]))
    with pytest.raises(Overtaken, match="another job has started this stage"):
        train_queue(queue)
    over.set()
    assert [failure(queue.store, item.run, queue.training) for item in queue.items] == [None, None]


def test_another_group_is_started_once_there_is_room(
    tmp_path: Path, live: Callable[[Lives], Lives], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = threading.Event()

    def alone(queue: Queue, roster: ActorHandle, group: int) -> None:
        ray.get(roster.take.remote(group))
        assert joined.wait(WAIT_S)
        works(queue, roster, group)

    def joins(queue: Queue, roster: ActorHandle, group: int) -> None:
        joined.set()
        works(queue, roster, group)

    rooms = iter([0, 0, 1])
    monkeypatch.setattr(ray_train, "_room", lambda *_: next(rooms, 0))
    monkeypatch.setattr(ray_train, "LOOK_FOR_ROOM_S", 0.0)
    queue, lives = queue_at(tmp_path, parallel_runs=None), live(Lives(alone, also=[joins]))
    train_queue(queue)
    assert queue.todo() == []
    assert lives.lived == [1, 1]
