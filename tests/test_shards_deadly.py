"""A shard that ends its process every time: it is tried so often and no more, and what is finished is kept."""

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd import ray_data
from kd.errors import StageError
from kd.ray_data import Pool
from kd.rows import Example, RowError
from kd.shards import Apply
from kd.store import Store
from tests.tiny_shards import Shout, corpus, shouted, work


@dataclass(frozen=True)
class Deadly(Shout):
    """A stage whose process is killed by one row, as the system does where memory runs out; it notes every try."""

    notes: str

    def open(self) -> Apply:
        def apply(rows: list[Example], _: Counter[str]) -> list[Example | RowError]:
            if any(row.uid == "u4" for row in rows):
                with Path(self.notes).open("a") as stream:
                    stream.write("tried\n")
                os.kill(os.getpid(), signal.SIGKILL)
            return [shouted(row) for row in rows]

        return apply


@pytest.mark.slow
def test_a_shard_that_ends_its_process_stops_the_stage(cluster: None, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "run"))
    shards = corpus(store)
    notes = tmp_path / "notes"
    pool = Pool(min_actors=1, max_actors=1, cpus_per_actor=1, gpus_per_actor=0)
    with pytest.raises(
        StageError, match=r"shard train-4 of .*loud: its process ended 10 times without a word, .* finished shards are kept"
    ):
        ray_data.run(store, [work(shards, recipe=Deadly(str(notes)))], pool, lambda *_: None)
    assert notes.read_text().count("tried") == 10
    assert {shard.file for shard in shards[:2]} <= set(store.names("loud"))
    (manifest,) = ray_data.run(store, [work(shards)], pool, lambda *_: None)
    assert manifest.rows == 5
