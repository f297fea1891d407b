"""How often a shard is begun: processes that die of it are counted, machines that are taken away are not."""

import pytest

from kd.errors import StageError
from kd.tries import MOST_LOSSES, MOST_TRIES, Tries, check_tries


def begun(tries: Tries, times: int, node: str = "here") -> tuple[int, int]:
    """What the last of so many tries hears, none of which comes to an end."""
    return [tries.begin("loud/train-0", node) for _ in range(times)][-1]


def check(died: int, lost: int) -> None:
    check_tries(died, lost, "/run/loud", "train-0")


def test_a_shard_whose_process_never_comes_back_is_given_up_in_the_end() -> None:
    tries = Tries(lambda: {"here"})
    check(*begun(tries, MOST_TRIES))
    with pytest.raises(StageError, match=r"shard train-0 of /run/loud: its process ended 10 times without a word, .* are kept"):
        check(*begun(tries, 1))
    assert tries.begin("loud/train-1", "here") == (0, 0), "another shard is none the worse"


def test_a_shard_that_ends_with_a_word_is_counted_from_the_start() -> None:
    tries = Tries(lambda: {"here"})
    for _ in range(2 * MOST_TRIES):
        check(*begun(tries, 1))
        tries.end("loud/train-0")
    assert begun(tries, 1) == (0, 0)


def test_machines_that_are_taken_away_are_no_fault_of_the_shard_unless_it_takes_them_all() -> None:
    tries = Tries(lambda: {"here"})
    assert begun(tries, MOST_LOSSES, "gone") == (0, MOST_LOSSES - 1)
    check(0, MOST_LOSSES - 1)
    assert begun(tries, 3) == (2, MOST_LOSSES)
    with pytest.raises(StageError, match=r"its process ended 52 times without a word"):
        check(2, MOST_LOSSES)
