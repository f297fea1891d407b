"""A stage that shouts, a corpus for it in shards, and the chain without any scheduler."""

import dataclasses
from dataclasses import dataclass

from kd.loading import device_name
from kd.manifests import Manifest, Shard
from kd.rows import Example, RowError
from kd.shards import Apply, Work, claim, finish, run_shard
from kd.store import Store
from tests.test_rows import example


@dataclass(frozen=True)
class Shout:
    """A stage of the tests: targets in capitals; a target `bad` is a row's own fault."""

    def open(self) -> Apply:
        return lambda rows, _: [shouted(row) for row in rows]


def shouted(row: Example) -> Example | RowError:
    if row.target == "bad":
        return RowError("unknown_label", "bad")
    return dataclasses.replace(row, target=(row.target or "").upper())


def corpus(store: Store, rows_per_shard: int = 2, n: int = 5) -> list[Shard]:
    rows = [example(f"u{i}", target="bad" if i == 3 else f"t{i}", label_set=[]) for i in range(n)]
    shards = []
    for start in range(0, n, rows_per_shard):
        part = rows[start : start + rows_per_shard]
        shards.append(Shard(f"train-{start}", "train", len(part)))
        store.publish_rows(f"examples/{shards[-1].file}", part, Example, {})
    return shards


def work(shards: list[Shard], recipe: object = None, **changes: object) -> Work:
    fields = {
        "title": "shout",
        "recipe": recipe or Shout(),
        "source": "examples",
        "target": "loud",
        "reads": Example,
        "writes": Example,
        "shards": shards,
        "config": {"volume": 11},
        "inputs": {"examples": "abc"},
        "max_error_frac": 0.5,
        "max_error_key": "shout.max_error_frac",
    }
    return Work(**fields | changes)


def loop(store: Store, todo: Work, retry_errors: bool = False) -> Manifest:
    """The chain without any scheduler."""
    claimed = claim(store, todo, retry_errors)
    if isinstance(claimed, Manifest):
        return claimed
    apply = todo.recipe.open()
    for shard in claimed.todo:
        run_shard(store, claimed, shard, apply, device_name("cpu"))
    return finish(store, claimed, 1.0, "cpu")
