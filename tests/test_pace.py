"""The rate of a stage, in closed form: bursts, a slow start, what was done before, works of different speed."""

from collections.abc import Iterable

import pytest

from jobs.pace import LEAST_S, WINDOW_S, Pace

Move = tuple[float, int]
"""A time, and how much is done by then."""


def rates(moves: Iterable[Move], workers: int = 1, before: int = 0) -> list[float | None]:
    """What is said of the rate after every move."""
    pace, found = Pace(workers=workers), []
    pace.add(0.0, before)
    for now_s, done in moves:
        assert pace.add(now_s, done)
        found.append(pace.per_second())
    return found


def steady(start_s: float, every_s: float, size: int, count: int, before: int = 0) -> list[Move]:
    """One worker that begins with a part of work after the start, and with the next one at once."""
    return [(start_s + every_s * part, before + size * part) for part in range(1, count + 1)]


def in_step(start_s: float, every_s: float, size: int, rounds: int, workers: int) -> list[Move]:
    """Workers that end their parts all at the same times, one right behind the other."""
    ends = [start_s + every_s * part for part in range(1, rounds + 1) for _ in range(workers)]
    return [(end_s, size * (number + 1)) for number, end_s in enumerate(ends)]


def test_a_start_of_minutes_is_not_counted() -> None:
    first, *others = rates(steady(start_s=600, every_s=10, size=50, count=8))
    assert first is None
    assert others == pytest.approx([5.0] * 7)


def test_what_was_done_before_this_start_is_no_speed() -> None:
    first, *others = rates(steady(start_s=30, every_s=10, size=50, count=8, before=9_000), before=9_000)
    assert first is None
    assert others == pytest.approx([5.0] * 7)


@pytest.mark.parametrize("workers", [2, 4, 7])
def test_workers_in_step_are_counted_in_whole_rounds(workers: int) -> None:
    found = rates(in_step(start_s=90, every_s=20, size=50, rounds=6, workers=workers), workers)
    assert found[:workers] == [None] * workers, "a burst is no rate"
    assert found[workers:] == pytest.approx([workers * 50 / 20] * (5 * workers))


def test_workers_out_of_step_give_the_same_rate() -> None:
    moves = [(20.0 + 5 * number, 50 * (number + 1)) for number in range(40)]  # four, each 20 s for a part
    found = rates(moves, workers=4)
    assert found[:4] == [None] * 4
    assert found[4:] == pytest.approx([10.0] * 36)


def test_no_rate_comes_from_less_than_some_seconds() -> None:
    found = rates(steady(start_s=60, every_s=1, size=10, count=20))
    known = [number for number, rate in enumerate(found) if rate is not None]
    assert known == list(range(int(LEAST_S), 20))
    assert [found[number] for number in known] == pytest.approx([10.0] * len(known))


def test_the_rate_is_that_of_the_last_window() -> None:
    """Two works in one line: the second is ten times slower. A window later nothing is left of the first."""
    fast = steady(start_s=0, every_s=1, size=10, count=300)
    slow = [(300.0 + 10 * part, 3000 + 10 * part) for part in range(1, 13)]
    found = rates(fast + slow)
    assert found[299] == pytest.approx(10.0)
    assert found[302] == pytest.approx((3 * 10 + 30 * 10) / 60)
    assert found[300 + int(WINDOW_S) // 10 - 1 :] == pytest.approx([1.0] * 7)


def test_parts_longer_than_the_window_are_taken_one_round_at_a_time() -> None:
    moves = steady(start_s=0, every_s=600, size=100, count=3) + [(1800.0 + 300 * part, 300 + 100 * part) for part in (1, 2, 3)]
    first, *others = rates(moves)
    assert first is None
    assert others == pytest.approx([100 / 600] * 2 + [100 / 300] * 3)


def test_a_long_stage_is_remembered_by_its_last_window_alone() -> None:
    pace = Pace(workers=3)
    for number in range(10_000):
        pace.add(number / 10, number)
    assert len(pace._moves) < 10 * WINDOW_S + 2 * 3
    assert pace.per_second() == pytest.approx(10.0)


def test_a_call_without_anything_new_is_no_move() -> None:
    pace = Pace()
    assert [pace.add(float(second), done) for second, done in enumerate([40, 40, 50, 50, 60])] == [
        False,
        False,
        True,
        False,
        True,
    ]
