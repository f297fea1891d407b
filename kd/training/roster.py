"""Which group of workers trains which run of a queue, what became of it, and where every worker was last.

One object knows this for all groups of a stage. What it knows is of this start alone: at the next one a run without a
manifest is to be trained, whatever happened to it before.
"""

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime

from kd.training.runs import FAILURE, Claimed, Failure, Queue
from kd.training.watchdog import Beat, hang


class Roster:
    """The runs of a queue dealt to `groups`, by their positions in turn.

    A group takes its own runs in order, then the last one of the group that has most left.
    """

    def __init__(self, queue: Queue, groups: int) -> None:
        self._queue = queue
        todo = {item.folder for item in queue.todo()}
        positions = [position for position, item in enumerate(queue.items) if item.folder in todo]
        self._waiting = [[position for position in positions if position % groups == group] for group in range(groups)]
        self._at: dict[int, int] = {}
        self._attempts: Counter[int] = Counter()
        self._beats: dict[int, dict[int, Beat]] = {group: {} for group in range(groups)}
        self._failures: list[Failure] = []

    def has_work(self, group: int) -> bool:
        """Whether a run is left for the group to begin or to go on with."""
        return group in self._at or any(self._waiting)

    def is_over(self) -> bool:
        """Whether every run has its model or has failed."""
        return not self._at and not any(self._waiting)

    def take(self, group: int) -> int | None:
        """The position of what the group trains next, None for nothing; one that lost a worker goes on with its run."""
        if group in self._at and self._is_finished(self._at[group]):
            self._leave(group, None)
        if group not in self._at and any(self._waiting):
            mine, most = self._waiting[group], max(self._waiting, key=len)
            self._at[group] = mine.pop(0) if mine else most.pop()
            self._queue.store.delete(f"{self._item(group).folder}/{FAILURE}")
        return self._at.get(group)

    def over(self, group: int, error: str | None) -> None:
        """The run of the group is finished, or has failed for a reason that trying again would not mend."""
        self._attempts[self._at[group]] += 1
        self._leave(group, error)

    def lost(self, group: int, error: str) -> bool:
        """The group has died. Its run failed if that happened too often; a hang is told instead of its consequence.

        False: it was in no run.
        """
        if group not in self._at:
            return False
        position = self._at[group]
        self._attempts[position] += 1
        if self._is_finished(position):
            self._leave(group, None)
        elif self._attempts[position] > self._queue.training.max_failures:
            told = hang(self._queue.stage, list(self._beats[group].values()), self._queue.training.num_workers)
            self._leave(group, told or error)
        self._beats[group].clear()
        return True

    def beat(self, group: int, beat: Beat) -> None:
        """A worker of the group says what it is doing."""
        self._beats[group][beat.rank] = beat

    def failures(self) -> list[Failure]:
        """The runs that failed in this start."""
        return self._failures

    def _leave(self, group: int, error: str | None) -> None:
        if error is not None:
            self._note(group, error)
        self._beats[group].clear()
        del self._at[group]

    def _note(self, group: int, error: str) -> None:
        item, beats = self._item(group), self._beats[group].values()
        step = max((beat.step for beat in beats if beat.run == item.run.name), default=0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(item.run.name, error, step, self._attempts[self._at[group]], now)
        self._queue.store.publish_json(f"{item.folder}/{FAILURE}", asdict(failure))
        self._failures.append(failure)

    def _is_finished(self, position: int) -> bool:
        return self._queue.store.manifest(self._queue.items[position].folder) is not None

    def _item(self, group: int) -> Claimed:
        return self._queue.items[self._at[group]]
