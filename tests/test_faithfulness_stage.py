"""Faithfulness as a stage over shards: rows in are rows out, and its figures come from what it wrote."""

from pathlib import Path

from jobs.slices import first_rows
from kd.audit_rows import Erasure
from kd.evaluation.faithfulness import Faithfulness, FaithfulnessConfig
from kd.evaluation.faithfulness_sums import faithfulness_sums
from kd.evaluation.metrics import About
from kd.rows import RationaleRow
from kd.shards import Work, completed
from tests.mini import alone, mini_config, plain, prepared, taught, write_mini


def test_a_sample_of_rationales_becomes_erasures_with_the_same_uids(tmp_path: Path) -> None:
    wiring = taught(prepared(mini_config(write_mini(tmp_path), training=alone())))
    config, rationales = FaithfulnessConfig(rows=30, fractions=(0.1, 0.5)), wiring.config.rationales
    source, manifest = completed(wiring.store, wiring.rationales()["attribution"])
    unmerged = rationales.model_copy(update={"merge_duplicates": False})
    words = unmerged.units, rationales.units, rationales.control
    work = Work(
        title="audit",
        recipe=Faithfulness(config, wiring.teacher, *words, rationales.roles, by_importance=True, device="cpu", threads=1),
        source=source,
        target="audit/attribution",
        reads=RationaleRow,
        writes=Erasure,
        shards=first_rows(manifest.shards_of("train"), config.rows),
        config=config.model_dump(mode="json"),
        inputs={"rationales": manifest.digest},
        max_error_frac=config.max_error_frac,
        max_error_key="audit.faithfulness.max_error_frac",
    )
    plain(wiring.store, [work])
    folder, done = completed(wiring.store, work)
    made = [row for shard in done.shards for row in wiring.store.read_rows(f"{folder}/{shard.file}", Erasure)]
    given = [row for shard in done.shards for row in wiring.store.read_rows(f"{source}/{shard.file}", RationaleRow)[: shard.rows]]
    assert [row.uid for row in made] == [row.uid for row in given]
    assert (done.rows, done.errors) == (30, {})
    assert done.counts["tokens"] > 0
    figures = {
        row.metric: row
        for row in faithfulness_sums(made).metrics(About("rationales", "audit", "attribution", None, "p", "train"))
    }
    assert {figures[f"comprehensiveness:{order}@0.5"].n for order in ("importance", "random")} == {30}
    assert figures["comprehensiveness:lexical"].n == 0, "no word of a planted question stands in an option"
    gain = figures["comprehensiveness_gain:random"]
    assert gain.value is not None
    assert gain.ci_low is not None
    assert gain.ci_high is not None
    assert gain.ci_low < gain.value < gain.ci_high
