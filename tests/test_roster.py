"""Which group trains which run, and what is said of runs that fail; without Ray."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd.errors import Overtaken, StoreError
from kd.manifests import Manifest, Shard
from kd.store import Store
from kd.training.progress import Finished, Interruption, Progress, Status
from kd.training.roster import End, Roster
from kd.training.runs import FAILURE, Queue, failure
from kd.training.saved import CHECKPOINT_MANIFEST, CHECKPOINTS
from kd.training.watchdog import Beat
from tests.tiny_runs import SHORT, tiny_queue

ONCE_MORE = SHORT.model_copy(update={"max_failures": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("queue")


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """Four runs: words/0, words/1, label/0, label/1."""
    return tiny_queue(tmp_path, ONCE_MORE, seeds=(0, 1))


def finish(queue: Queue, position: int) -> None:
    item = queue.items[position]
    done = Manifest(stage="train", digest=item.digest, config={}, inputs={}, shards=[], rows=1, device="cpu", seconds=1.0)
    queue.store.publish_manifest(item.folder, done)


def test_groups_take_their_own_runs_in_order_and_then_what_the_others_have_last(queue: Queue) -> None:
    roster, taken = Roster(queue, 2), list[tuple[int, int | None]]()
    for group in (1, 0, 0, 0):
        taken.append((group, roster.take(group)))
        if group == 0:
            roster.ended(0, End())
    assert taken == [(1, 1), (0, 0), (0, 2), (0, 3)]
    assert not roster.has_work(0)
    assert roster.has_work(1)
    roster.ended(1, End())
    assert roster.is_over()


def test_finished_runs_are_not_given_out_and_the_deal_stays(queue: Queue) -> None:
    finish(queue, 0)
    roster = Roster(queue, 2)
    assert [roster.take(group) for group in (0, 1)] == [2, 1]


def test_a_group_goes_on_with_the_run_that_it_was_in_until_that_has_ended_it_too_often(queue: Queue) -> None:
    roster = Roster(queue, 1)
    assert roster.take(0) == 0
    assert roster.ended(0, End("first", again=True))
    assert roster.take(0) == 0
    roster.beat(0, Beat(1, "words/0", "step", 5))
    assert roster.ended(0, End("second", again=True))
    assert roster.take(0) == 1
    found = failure(queue.store, queue.items[0].run, ONCE_MORE)
    assert found is not None
    assert (found.run, found.error, found.step, found.attempts) == ("words/0", "second", 5, 2)
    assert roster.failures() == [found]
    assert found.time.endswith("+00:00")


def test_a_group_that_died_in_no_run_is_told_from_others(queue: Queue) -> None:
    assert not Roster(queue, 1).ended(0, End("no room", again=True))


def test_a_run_that_was_finished_before_its_group_died_has_not_failed(queue: Queue) -> None:
    roster = Roster(queue, 1)
    roster.take(0)
    finish(queue, 0)
    roster.ended(0, End("died at the end", again=True))
    assert roster.take(0) == 1
    assert roster.failures() == []


def test_a_run_that_is_begun_again_forgets_that_it_failed(queue: Queue) -> None:
    roster = Roster(queue, 1)
    roster.take(0)
    roster.ended(0, End("the loss is nan"))
    assert queue.store.exists(f"{queue.items[0].folder}/{FAILURE}")
    Roster(queue, 1).take(0)
    assert not queue.store.exists(f"{queue.items[0].folder}/{FAILURE}")


def test_a_hang_is_told_instead_of_its_consequence(queue: Queue) -> None:
    roster = Roster(Queue(**{**vars(queue), "training": SHORT.model_copy(update={"max_failures": 0})}), 1)
    roster.take(0)
    roster.beat(0, Beat(0, "words/0", "validate", 12, hung_s=30.2, waits=True))
    roster.beat(0, Beat(1, "words/0", "validate", 12, hung_s=30.0))
    roster.ended(0, End("connection closed", again=True))
    expected = "rank 1 of train hung in validate of words/0 at step 12 for 30 s; ranks that waited: 0"
    assert roster.failures()[0].error.startswith(expected)


def test_every_interruption_is_told_as_it_happens_with_what_hung_and_where_the_run_goes_on(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    roster = Roster(replace(queue, training=SHORT.model_copy(update={"max_failures": 2, "num_workers": 2})), 1)
    roster.take(0)
    roster.ended(0, End("a node was taken away\nand more", again=True))
    first = "interrupted (1 of at most 2): a node was taken away; it goes on from step 0"
    assert [str(said) for said in roster.status(0).news] == [first]
    save(queue, 0, 1500)
    roster.beat(0, Beat(0, "words/0", "step", 1612, hung_s=30.2, waits=True))
    roster.beat(0, Beat(1, "words/0", "step", 1612, hung_s=30.0))
    roster.ended(0, End("connection closed", again=True))
    (said,) = roster.status(1).news
    assert isinstance(said, Interruption)
    assert (said.run, said.step, said.number, said.most) == ("words/0", 1500, 1, 2), "counted anew, as the run has got on"
    assert said.why.startswith("rank 1 of train hung in step of words/0 at step 1612 for 30 s; ranks that waited: 0.")
    roster.ended(0, End("503", again=True))
    assert [str(said) for said in roster.status(2).news] == ["interrupted (2 of at most 2): 503; it goes on from step 1,500"]
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f"words/0 of train: {first}"
    assert len(told) == 3
    assert roster.failures() == []


def save(queue: Queue, position: int, step: int) -> None:
    """A checkpoint, as far as its name and its manifest go."""
    queue.store.publish(f"{queue.items[position].folder}/{CHECKPOINTS}/{step:08d}-a/{CHECKPOINT_MANIFEST}", b"{}")


def test_losses_are_counted_anew_once_the_run_has_a_newer_checkpoint(queue: Queue) -> None:
    roster = Roster(queue, 1)
    for step in (10, 20, 30):
        assert roster.take(0) == 0
        save(queue, 0, step)
        roster.ended(0, End("a node was taken away", again=True))
    assert roster.failures() == []
    assert roster.take(0) == 0
    roster.ended(0, End("twice at the same place", again=True))
    assert [(each.error, each.attempts) for each in roster.failures()] == [("twice at the same place", 4)]


def test_a_failure_tells_the_largest_step_that_was_seen_whatever_came_after_it(queue: Queue) -> None:
    roster = Roster(queue, 1)
    roster.take(0)
    roster.beat(0, Beat(0, "words/0", "step", 700))
    roster.ended(0, End("first", again=True))
    roster.take(0)
    for beat in (Beat(0, "words/0", "open", 0), Beat(0, "words/0", "step", 501), Beat(0, "another/0", "step", 999)):
        roster.beat(0, beat)
    roster.ended(0, End("second", again=True))
    assert [each.step for each in roster.failures()] == [700]


def test_a_finished_run_has_not_failed_whatever_went_wrong_after_its_manifest(queue: Queue) -> None:
    roster = Roster(queue, 1)
    roster.take(0)
    finish(queue, 0)
    assert roster.ended(0, End("cannot delete a checkpoint"))
    assert roster.failures() == []
    assert not queue.store.exists(f"{queue.items[0].folder}/{FAILURE}")
    assert roster.take(0) == 1


class Refusing(Store):
    """A run directory that is full once there are failures to tell."""

    def publish_json(self, relative: str, value: Mapping[str, Any]) -> None:
        if relative.endswith(FAILURE):
            raise StoreError(f"cannot write {relative}: no space left; check the path, the credentials and the free space")
        super().publish_json(relative, value)


def test_a_full_disk_hides_no_failure_and_leaves_the_roster_as_it_should_be(queue: Queue) -> None:
    roster = Roster(replace(queue, store=Refusing(queue.store.root)), 1)
    for position in range(4):
        assert roster.take(0) == position
        roster.ended(0, End(f"the loss is nan in {position}"))
    assert roster.is_over()
    assert [each.error for each in roster.failures()] == [f"the loss is nan in {position}" for position in range(4)]


def test_a_group_that_ends_early_leaves_its_run_to_another_one_also_to_one_that_came_later(queue: Queue) -> None:
    roster = Roster(queue, 2)
    assert [roster.take(group) for group in (0, 1)] == [0, 1]
    roster.give_back(0)
    assert roster.take(1) == 1, "who is at a run goes on with it"
    assert roster.unattended(1) == 3
    assert roster.unattended(2) == 0, "one group is at none, and may take the next itself"
    assert roster.take(7) == 2
    roster.ended(7, End())
    assert roster.take(7) == 0
    assert [roster.ended(group, End()) for group in (7, 1, 0)] == [True, True, False]
    assert not roster.is_over()


def test_a_run_that_another_job_has_finished_meanwhile_is_not_given_out(queue: Queue) -> None:
    roster = Roster(queue, 1)
    finish(queue, 0)
    assert roster.take(0) == 1


def test_the_roster_of_a_start_that_was_overtaken_gives_nothing_out(queue: Queue) -> None:
    older = Roster(queue, 1)
    assert older.take(0) == 0
    newer = Roster(queue, 1)
    with pytest.raises(Overtaken, match=r"train: another job has started this stage in .*/logs/train and goes on with it"):
        older.take(0)
    assert newer.take(0) == 0


def halfway(run: str) -> Progress:
    return Progress(run, 3, 6, {}, 1.5)


def test_the_roster_tells_how_far_the_runs_are_that_have_workers_and_what_becomes_of_them(queue: Queue) -> None:
    roster = Roster(queue, 2)
    assert roster.status(0) == Status(waits=True), "nobody is at work yet"
    for group, run in ((1, "words/1"), (0, "words/0")):
        roster.take(group)
        roster.report(group, halfway(run))
    roster.report(0, halfway("label/0"))
    assert roster.status(0) == Status(progress=(halfway("words/0"), halfway("words/1")))
    done = Manifest(stage="train", digest="d", config={}, inputs={}, shards=[Shard("a", "train", 1)], rows=1)
    roster.ended(0, End(manifest=done))
    assert roster.status(0) == Status((Finished("words/0", replace(done, shards=())),), (halfway("words/1"),))
    assert roster.status(1).news == ()


def test_a_run_whose_workers_are_lost_has_no_progress_and_waits_until_it_has_others(queue: Queue) -> None:
    roster = Roster(queue, 2)
    for group, run in ((0, "words/0"), (1, "words/1")):
        roster.take(group)
        roster.report(group, halfway(run))
    assert roster.gone(0, End("the node of rank 0 was lost", again=True))
    status = roster.status(0)
    assert (status.waits, status.progress) == (True, (halfway("words/1"),))
    assert str(status.news[0]) == "interrupted (1 of at most 1): the node of rank 0 was lost; it goes on from step 0"
    roster.take(0)
    assert not roster.status(0).waits
    assert not roster.gone(1, None), "no error of the run that it is in"
    assert roster.status(0).waits
    roster.give_back(1)
    assert not roster.status(0).waits, "it waits for its turn, not for workers"
