"""How fast a stage goes, for the time that it takes yet."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""The rate is that of the last so many seconds, or of one round where that takes longer."""
LEAST_S = 5.0
"""A rate of less time than this means nothing."""


@dataclass
class Pace:
    """The rate of the last window of a stage, from its moves: the moments when something more was done.

    What was done before this start is no speed, and neither is the time up to the first move: it holds the start of the
    workers and the load of their models. From there time is counted in rounds. A round is as many moves as there are workers.
    Workers in step report together and then pause, so a rate is taken over whole rounds: from one report of a worker to its
    next. The rate is

        what was done in the last k rounds / the time from the move before them to the last move

    with the smallest k for which that time is at least `WINDOW_S`; where there are not so many, all rounds. No rate is known
    before the first round is over, nor from less than `LEAST_S`.
    """

    workers: int = 1
    """How many are at work, each with a part of its own; where it is not known, one."""
    done: int = 0
    """The most that was ever said to be done."""
    _begun: bool = False
    _moves: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now_s: float, done: int) -> bool:
        """Note how much is done by now; the first call says what was done before. Whether it is more than at the last call."""
        is_move = self._begun and done > self.done
        self.done, self._begun = max(done, self.done), True
        if is_move:
            self._moves.append((now_s, done))
            self._forget(now_s - WINDOW_S)
        return is_move

    def per_second(self) -> float | None:
        """The rate, in what `add` counts; None where it is not known yet."""
        starts = list(self._moves)[-1 - self.workers :: -self.workers] if len(self._moves) > self.workers else []
        if not starts:
            return None
        last_s, last = self._moves[-1]
        first_s, first = next((move for move in starts if last_s - move[0] >= WINDOW_S), starts[-1])
        return (last - first) / (last_s - first_s) if last_s - first_s >= LEAST_S else None

    def _forget(self, before_s: float) -> None:
        """Drop the moves that no window can begin with: one round of them from before that time is enough."""
        while len(self._moves) > 2 * self.workers and self._moves[self.workers][0] <= before_s:
            self._moves.popleft()
