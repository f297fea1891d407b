"""A corpus in a script without spaces: said where nothing finds its words, and what finds them is part of what is made."""

import json
import sys
from pathlib import Path

import pytest

from jobs.prepare import warnings
from jobs.wiring import Wiring
from kd.examples import UNSPACED
from kd.rows import RationaleRow
from kd.shards import completed
from kd.spans import _icu, segmenter
from tests.mini import alone, mini_config, prepared, taught, write_mini

THAI = "ฉันรักภาษาไทยและอยากเรียนทุกวัน"


def in_thai(folder: Path, rows: int, **changes: object) -> Wiring:
    """The small run with so many questions of train in Thai."""
    path = write_mini(folder)
    file = folder / "corpus" / "train.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for record in records[:rows]:
        record["question"] = f"{THAI} {record['question']}"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return prepared(mini_config(path, training=alone(), **changes))


def test_rows_of_such_scripts_are_counted_and_rationales_are_drawn_from_their_words(tmp_path: Path) -> None:
    wiring = taught(in_thai(tmp_path, 3))
    assert wiring.examples.counts[UNSPACED] == 3
    assert list(warnings(wiring.examples, ["train"])) == []
    work = wiring.rationales()["attribution"]
    assert work.config["segmenter"] == segmenter()
    folder, manifest = completed(wiring.store, work)
    rows = [row for shard in manifest.shards for row in wiring.store.read_rows(f"{folder}/{shard.file}", RationaleRow)]
    found = [row for row in rows if row.segments[0].text.startswith(THAI)]
    assert found
    for row in found:
        own = [end - start for end, start in zip(row.word_end, row.word_start, strict=True) if end <= len(THAI)]
        assert own[:9] == [3, 3, 4, 3, 3, 4, 5, 3, 3]
        assert json.loads(row.provenance)["segmenter"] == segmenter()


def test_what_finds_words_is_in_the_key_where_the_corpus_has_such_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"attribution": {"method": {"type": "occlusion"}, "splits": {"train": 50}}}
    untaught = {**method, "teach": None, "evaluation": {"split": "test"}}
    thai, english = in_thai(tmp_path / "thai", 3, **untaught), in_thai(tmp_path / "english", 0, **untaught)

    def digests() -> list[str]:
        return [wiring.attributions().digest for wiring in (thai, english)]

    found = digests()
    assert "segmenter" in thai.attributions().config
    assert "segmenter" not in english.attributions().config
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)  # as where it is not installed
    _icu.cache_clear()
    try:
        assert [one == other for one, other in zip(found, digests(), strict=True)] == [False, True]
        (warning,) = warnings(thai.examples, ["train"])
        assert warning.startswith("3 rows have Thai, Khmer, Lao or Burmese text")
        assert list(warnings(english.examples, ["train"])) == []
    finally:
        _icu.cache_clear()


def test_only_what_looks_at_words_has_it_in_its_key(tmp_path: Path) -> None:
    thai = in_thai(tmp_path, 3, teach=None)
    assert "segmenter" not in thai.attributions().config, "saliency is of tokens"
