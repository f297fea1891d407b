"""Steps in turn: one that fails keeps no other from being done, and its error is told once all are."""

import pickle
from collections.abc import Callable

import pytest

from kd.errors import InputError, Overtaken, StageError, each_in_turn


def step(said: list[str], name: str, error: Exception | None = None) -> Callable[[], str]:
    """A step that notes that it was done, or fails."""

    def do() -> str:
        if error is not None:
            raise error
        said.append(name)
        return name

    return do


def test_what_each_step_gives_comes_in_order() -> None:
    assert each_in_turn([step([], "a"), step([], "b")]) == ["a", "b"]


def test_an_error_comes_as_itself_behind_the_other_steps() -> None:
    said, error = list[str](), StageError("b failed")
    with pytest.raises(StageError) as raised:
        each_in_turn([step(said, "a"), step(said, "b", error), step(said, "c")])
    assert raised.value is error
    assert said == ["a", "c"]


def test_several_errors_come_as_one_that_travels() -> None:
    said = list[str]()
    with pytest.raises(StageError, match=r"^a failed\n\nc failed$") as raised:
        each_in_turn([step(said, "a", StageError("a failed")), step(said, "b"), step(said, "c", StageError("c failed"))])
    assert said == ["b"]
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("error", [Overtaken("another job goes on"), InputError("no such file"), ZeroDivisionError("a defect")])
def test_another_jobs_start_a_users_mistake_and_a_defect_end_it_at_once(error: Exception) -> None:
    said = list[str]()
    with pytest.raises(type(error)):
        each_in_turn([step(said, "a"), step(said, "b", error), step(said, "c")])
    assert said == ["a"]
