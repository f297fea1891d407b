"""The cut of a global batch: nothing is lost, all workers take equally many, little is padded and nobody waits for long."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.batching import cut
from kd.training.cutting import MicroBatch, cost, deal, evened, work

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), max_size=40)
BUDGET = st.integers(1, 400)
WORLD = st.integers(1, 5)


def batch(rows: int = 64) -> list[tuple[int, int]]:
    """A batch of lengths as real questions have them: each is read once for its label and once for its rationale."""
    draw = random.Random(0)
    inputs = [20 + int(draw.lognormvariate(3, 0.5)) for _ in range(rows)]
    return [size for tokens in inputs for size in ((tokens, 3), (tokens, 5 + int(draw.lognormvariate(3, 0.5))))]


def load(passes: list[list[MicroBatch]], rank: int, sizes: list[tuple[int, int]]) -> int:
    return sum(cost(dealt[rank].group, sizes) for dealt in passes)


@given(SIZES, BUDGET, WORLD, st.booleans())
def test_every_sequence_is_learned_once_and_every_worker_takes_equally_many_micro_batches(
    sizes: list[tuple[int, int]], budget: int, world: int, in_step: bool
) -> None:
    passes = deal(sizes, budget, world, in_step)
    assert passes
    assert {len(dealt) for dealt in passes} == {world}
    assert sorted(index for dealt in passes for each in dealt for index in each.group) == list(range(len(sizes)))


@given(SIZES, BUDGET, WORLD, st.booleans())
def test_a_micro_batch_of_several_sequences_is_within_the_budget(
    sizes: list[tuple[int, int]], budget: int, world: int, in_step: bool
) -> None:
    groups = [each.group for dealt in deal(sizes, budget, world, in_step) for each in dealt]
    assert all(len(group) < 2 or cost(group, sizes) <= budget for group in groups)


@given(SIZES, BUDGET, WORLD, st.booleans())
def test_nobody_stands_in_while_another_has_two_sequences_and_numbers_run_through(
    sizes: list[tuple[int, int]], budget: int, world: int, in_step: bool
) -> None:
    passes = deal(sizes, budget, world, in_step)
    dealt = sorted((each for dealt in passes for each in dealt), key=lambda each: each.number)
    assert [each.number for each in dealt] == list(range(len(passes) * world))
    if any(not each.group for each in dealt):
        assert all(len(each.group) < 2 for each in dealt) or world == 1


@given(SIZES, BUDGET, WORLD, st.booleans())
def test_more_workers_never_take_more_passes_than_the_budget_asks_for(
    sizes: list[tuple[int, int]], budget: int, world: int, in_step: bool
) -> None:
    assert len(deal(sizes, budget, world, in_step)) == max(1, -(-len(cut(sizes, budget)) // world))


def test_one_worker_takes_the_cut_as_it_is() -> None:
    assert [dealt[0].group for dealt in deal(batch(), 1000, 1)] == cut(batch(), 1000)


def test_a_batch_with_nothing_to_learn_is_one_stand_in_for_each() -> None:
    assert deal([], 100, 2) == [[MicroBatch(0, []), MicroBatch(1, [])]]


def test_fewer_sequences_than_workers_leave_stand_ins() -> None:
    assert deal([(5, 1)], 100, 3) == [[MicroBatch(0, [0]), MicroBatch(1, []), MicroBatch(2, [])]]


def test_the_same_groups_have_the_same_numbers_however_many_share_them() -> None:
    alone = {each.number: each.group for dealt in deal([(5, 1)] * 4, 1, 1) for each in dealt}
    shared = {each.number: each.group for dealt in deal([(5, 1)] * 4, 1, 2) for each in dealt}
    assert alone == shared


@given(SIZES, BUDGET, WORLD, WORLD, st.booleans())
def test_what_is_cut_for_some_workers_is_the_same_for_any_number_that_shares_it(
    sizes: list[tuple[int, int]], budget: int, world: int, cut_for: int, in_step: bool
) -> None:
    meant = {each.number: each.group for dealt in deal(sizes, budget, cut_for, in_step) for each in dealt if each.group}
    passes = deal(sizes, budget, world, in_step, cut_for)
    assert {each.number: each.group for dealt in passes for each in dealt if each.group} == meant
    assert {len(dealt) for dealt in passes} == {world}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("budget", [1024, 4096, 100_000])
def test_workers_compute_alike(world: int, budget: int) -> None:
    sizes = batch()
    passes = deal(sizes, budget, world)
    loads = [load(passes, rank, sizes) for rank in range(world)]
    assert max(loads) < 1.1 * sum(loads) / world


def test_workers_that_meet_at_the_end_of_a_step_change_micro_batches_until_they_have_the_same_work() -> None:
    sizes = [(tokens, 1) for tokens in (20, 13, 12, 10, 9, 1)]
    shares = list(zip(*deal(sizes, 1, 2, in_step=False), strict=True))
    assert sorted(sum(sizes[index][0] for each in share for index in each.group) for share in shares) == [32, 33]


@given(SIZES, BUDGET, WORLD)
def test_what_is_exchanged_leaves_the_busiest_worker_no_more_to_do(sizes: list[tuple[int, int]], budget: int, world: int) -> None:
    passes = deal(sizes, budget, world)
    before, after = (
        [sum(work(each.group, sizes) for each in share) for share in zip(*each, strict=True)]
        for each in (passes, evened([*map(list, passes)], sizes))
    )
    assert max(after) <= max(before) + 1e-9
    assert sum(after) == pytest.approx(sum(before))


def test_many_micro_batches_are_evened_by_few_exchanges() -> None:
    sizes = [(1 + number % 97, 1) for number in range(1000)]
    larger = sorted(range(1000), key=lambda number: -sizes[number][0])
    passes = [[MicroBatch(number, [number]) for number in pair] for pair in zip(larger[:500], larger[500:], strict=True)]
    uneven, even = (
        [sum(work(each.group, sizes) for each in share) for share in zip(*each, strict=True)]
        for each in (passes, evened([list(dealt) for dealt in passes], sizes))
    )
    assert max(uneven) > 2 * min(uneven)
    assert max(even) <= 1.003 * min(even)


@pytest.mark.parametrize("budget", [1024, 2048, 4096])
def test_workers_that_do_not_wait_in_every_pass_are_done_no_later(budget: int) -> None:
    sizes = batch()

    def times(in_step: bool) -> tuple[float, float]:
        taken = [[work(each.group, sizes) for each in dealt] for dealt in deal(sizes, budget, 2, in_step)]
        return sum(map(max, taken)), max(map(sum, zip(*taken, strict=True)))

    waiting, free = times(True), times(False)
    assert waiting[0] <= free[0], "in every pass"
    assert free[1] <= waiting[1], "in the step"


def test_what_is_done_first_depends_on_how_often_workers_wait() -> None:
    sizes = batch()
    assert any(deal(sizes, budget, 2, True) != deal(sizes, budget, 2, False) for budget in range(512, 4096, 256))


@pytest.mark.parametrize("world", [1, 2])
def test_a_smaller_budget_pads_less(world: int) -> None:
    sizes, tokens = batch(), sum(map(sum, batch()))
    padded = [sum(load(deal(sizes, budget, world), rank, sizes) for rank in range(world)) for budget in (100_000, 4096, 1024)]
    assert padded[0] > padded[1] > padded[2]
    assert padded[2] < 1.2 * tokens
