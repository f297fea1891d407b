"""Which group of workers trains which run of a queue, what became of it, and where every worker was last.

One object knows this for all groups of a stage. What it knows is of this start alone: at the next one a run without a
manifest is to be trained, whatever happened to it before.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from kd.attempts import begin_attempt, check_newest
from kd.errors import StoreError
from kd.manifests import Manifest
from kd.refusals import tolerated
from kd.training.progress import Finished, Interruption, News, Progress, Status
from kd.training.runs import FAILURE, Claimed, Failure, Queue
from kd.training.saved import newest_step
from kd.training.watchdog import Beat, hang

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How a group's time with a run has ended: the run is finished, and has this `manifest`, where there is no `error`.

    `again`: the error may be gone the next time (a worker was lost, the run directory was out of reach), so the run is begun
    again from its newest checkpoint.
    """

    error: str | None = None
    again: bool = False
    manifest: Manifest | None = None


class Roster:
    """The runs of a queue dealt to `groups`, by their positions in turn. With it this start takes over from any other.

    `todo` are the runs that are not finished, where that is known.

    A group takes its own runs in order, then the last one of the group that has most left; so does one that comes later.
    What the run directory refuses is a warning here: it ends no group, and least of all this object, which all of them need.
    """

    def __init__(self, queue: Queue, groups: int, todo: Sequence[Claimed] | None = None) -> None:
        self._queue = queue
        self._folder = f"logs/{queue.stage}"
        self._attempt = begin_attempt(queue.store, self._folder)
        todo = queue.todo() if todo is None else todo
        positions = [position for position, item in enumerate(queue.items) if item in todo]
        self._waiting = {group: [position for position in positions if position % groups == group] for group in range(groups)}
        self._at: dict[int, int] = {}
        self._attempts: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._saved: Counter[int] = Counter()
        self._seen: Counter[int] = Counter()
        self._beats: defaultdict[int, dict[int, Beat]] = defaultdict(dict)
        self._at_work: set[int] = set()
        self._progress: dict[int, Progress] = {}
        self._news: list[News] = []

    def has_work(self, group: int) -> bool:
        """Whether a run is left for the group to begin or to go on with."""
        return group in self._at or any(self._waiting.values())

    def is_over(self) -> bool:
        """Whether every run has its model or has failed."""
        return not self._at and not any(self._waiting.values())

    def unattended(self, groups: int) -> int:
        """How many runs wait for a group; none while one of so many groups is at none itself, and may take the next."""
        return sum(map(len, self._waiting.values())) if len(self._at) >= groups else 0

    def take(self, group: int) -> int | None:
        """The position of what the group trains next, None for nothing; one that lost a worker goes on with its run.

        Raises:
            Overtaken: the stage was started once more, and that start goes on with its runs.
        """
        with tolerated():
            check_newest(self._queue.store, self._folder, self._attempt, self._queue.stage)
        if group in self._at and (manifest := self._manifest(self._at[group])):
            self._leave(group, End(manifest=manifest))
        while group not in self._at and any(self._waiting.values()):
            mine, most = self._waiting.get(group), max(self._waiting.values(), key=len)
            position = mine.pop(0) if mine else most.pop()
            if manifest := self._manifest(position):
                self._say_finished(position, manifest)
            else:
                self._begin(group, position)
        if group in self._at:
            self._at_work.add(group)
        return self._at.get(group)

    def ended(self, group: int, end: End) -> bool:
        """The run of the group has ended so. False: the group was in no run."""
        if group not in self._at:
            return False
        self._attempts[self._at[group]] += 1
        if end.error is not None and end.again:
            self._interrupt(group, end.error)
        else:
            self._leave(group, end)
        return True

    def gone(self, group: int, end: End | None) -> bool:
        """The group's workers are gone: they have died, which ends their run so, or there was nothing left for them to do."""
        self._at_work.discard(group)
        return end is not None and self.ended(group, end)

    def give_back(self, group: int) -> None:
        """The group ends before its work does: what it was in waits for another one."""
        self._at_work.discard(group)
        if group in self._at:
            self._waiting.setdefault(group, []).insert(0, self._at.pop(group))

    def beat(self, group: int, beat: Beat) -> None:
        """A worker of the group says what it is doing."""
        self._beats[group][beat.rank] = beat
        position = self._at.get(group)
        if position is not None and beat.run == self._queue.items[position].run.name:
            self._seen[position] = max(self._seen[position], beat.step)

    def report(self, group: int, progress: Progress) -> None:
        """The first worker of the group says how far its run is."""
        position = self._at.get(group)
        if position is not None and progress.run == self._item(position).run.name:
            self._progress[position] = progress

    def status(self, heard: int) -> Status:
        """What there is to tell who has heard so many news."""
        without_workers = not self._at_work or not self._at_work.issuperset(self._at)
        progress = tuple(self._progress[position] for position in sorted(self._progress))
        return Status(tuple(self._news[heard:]), progress, without_workers and not self.is_over())

    def failures(self) -> list[Failure]:
        """The runs that failed in this start."""
        return [each for each in self._news if isinstance(each, Failure)]

    def _interrupt(self, group: int, error: str) -> None:
        """The run fails if this happened too often since it last got on, which its newest checkpoint tells; else it stays the
        group's. A hang is told instead of its consequence.
        """
        position, most = self._at[group], self._queue.training.max_failures
        told = hang(self._queue.stage, list(self._beats[group].values()), self._queue.training.num_workers)
        self._beats[group].clear()
        self._progress.pop(position, None)
        if self._has_got_on(position):
            self._losses[position] = 0
        self._losses[position] += 1
        if manifest := self._manifest(position):
            self._leave(group, End(manifest=manifest))
        elif self._losses[position] > most:
            self._leave(group, End(told or error))
        else:
            name, step = self._item(position).run.name, self._saved[position]
            self._tell(Interruption(name, told or error, step, self._losses[position], most))

    def _tell(self, said: Interruption) -> None:
        log.warning("%s of %s: %s", said.run, self._queue.stage, said)
        self._news.append(said)

    def _begin(self, group: int, position: int) -> None:
        self._at[group] = position
        with tolerated():
            self._queue.store.delete(f"{self._item(position).folder}/{FAILURE}")

    def _leave(self, group: int, end: End) -> None:
        """The group is done with its run. One whose manifest is there has not failed, whatever came after that."""
        position = self._at.pop(group)
        self._beats[group].clear()
        self._progress.pop(position, None)
        manifest = end.manifest or self._manifest(position)
        if manifest:
            self._say_finished(position, manifest)
        elif end.error is not None:
            self._note(position, end.error)
        if manifest and end.error is not None:
            log.warning("%s is finished; after that: %s", self._item(position).run.name, end.error)

    def _say_finished(self, position: int, manifest: Manifest) -> None:
        self._news.append(Finished(self._item(position).run.name, replace(manifest, shards=())))

    def _note(self, position: int, error: str) -> None:
        item, now = self._item(position), datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(item.run.name, error, self._seen[position], self._attempts[position], now)
        self._news.append(failure)
        with tolerated():
            self._queue.store.publish_json(f"{item.folder}/{FAILURE}", asdict(failure))

    def _has_got_on(self, position: int) -> bool:
        """Whether there is a newer checkpoint than at the run's last loss."""
        before = self._saved[position]
        with tolerated():
            self._saved[position] = max(before, newest_step(self._queue.store, self._item(position).folder))
        return self._saved[position] > before

    def _manifest(self, position: int) -> Manifest | None:
        """The run's manifest; None where it is not there, or cannot be read now."""
        try:
            return self._queue.store.manifest(self._item(position).folder)
        except StoreError as error:
            log.warning("%s", error)
            return None

    def _item(self, position: int) -> Claimed:
        return self._queue.items[position]
