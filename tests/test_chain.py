"""The whole chain: on a local Ray and in a plain loop the same rows, with one actor or two; run twice, the same losses."""

import io
import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import attribute, pipeline
from jobs.cli import Session
from jobs.console import Console
from jobs.stages import run_queue, run_works
from jobs.teacher_wiring import EXAMPLES, TEACHER
from jobs.wiring import Wiring
from kd.config import Config
from kd.errors import StageError, StoreError
from kd.examples import as_example
from kd.rows import Attribution, Example, Features, Prediction, RationaleRow, Row
from kd.shards import completed
from kd.store import Store
from tests.mini import mini_config, plain, without_teacher, write_mini


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mini(tmp_path_factory.mktemp("mini"))


def session(config: Config) -> Session:
    return Session(config, Store.at(config.directory), Console(io.StringIO()), ExitStack())


@pytest.fixture(scope="module")
def done(cluster: None, mini: Path) -> Session:
    """The chain on Ray, with two actors and two training workers."""
    ran = session(mini_config(mini))
    pipeline.run(ran)
    return ran


def printed(ran: Session) -> str:
    assert isinstance(ran.console.stream, io.StringIO)
    return ran.console.stream.getvalue()


def rows_of(store: Store, folder: str, row_type: type[Row]) -> list[Row]:
    manifest = store.manifest(folder)
    assert manifest is not None, f"{folder} has no manifest"
    return [row for shard in manifest.shards for row in store.read_rows(f"{folder}/{shard.file}", row_type)]


def take_over(done: Session, store: Store, *folders: str) -> None:
    """Copy what the finished chain made."""
    for folder in folders:
        shutil.copytree(done.store.path(folder), store.path(folder), dirs_exist_ok=True)


def test_prepare_keeps_every_record_in_the_order_of_the_files(done: Session) -> None:
    task = done.config.task
    for split in ("train", "validation", "test"):
        lines = (Path(task.path) / f"{split}.jsonl").read_text().splitlines()
        manifest = done.store.manifest(EXAMPLES)
        assert manifest is not None
        found = [row for shard in manifest.shards_of(split) for row in done.store.read_rows(f"{EXAMPLES}/{shard.file}", Example)]
        assert found == [as_example(task, split, line) for line in lines]


def test_a_plain_loop_gives_the_rows_of_the_cluster(done: Session, tmp_path: Path) -> None:
    """Trained models are taken over: how they are trained is compared elsewhere."""
    store = Store.at(str(tmp_path / "plain"))
    take_over(done, store, EXAMPLES)
    wiring = Wiring(done.config, store)
    wiring.make_tokenizers()
    plain(store, [wiring.teaching_features()])
    plain_features = rows_of(store, f"{TEACHER}/features", Features)
    take_over(done, store, TEACHER)
    plain(store, [wiring.attributions()])
    plain(store, list(wiring.rationales().values()))
    plain(store, wiring.student_features())
    take_over(done, store, *(run.target for run in wiring.students()))
    plain(store, wiring.predictions())
    assert plain_features == rows_of(done.store, f"{TEACHER}/features", Features)
    on_ray = Wiring(done.config, done.store)
    for work in [
        on_ray.attributions(),
        *on_ray.rationales().values(),
        *on_ray.student_features(),
        *on_ray.predictions(),
    ]:
        folder, _ = completed(done.store, work)
        rows = rows_of(done.store, folder, work.writes)
        assert rows == rows_of(store, folder, work.writes), folder
        assert rows, folder


def test_one_actor_gives_the_rationales_of_two(done: Session, mini: Path) -> None:
    config = mini_config(mini, name="one", cluster={"min_actors": 1, "max_actors": 1})
    one = session(config)
    take_over(done, one.store, EXAMPLES, TEACHER, "tokenizers")
    wiring = Wiring(config, one.store)
    run_works(one, "attribute", [wiring.attributions()], wiring.pool)
    run_works(one, "rationalize", list(wiring.rationales().values()), wiring.cpu_pool)
    for source in ("attribution", "random", "llm", "none"):
        folder = f"rationales/{source}"
        assert rows_of(one.store, folder, RationaleRow) == rows_of(done.store, folder, RationaleRow)


def test_the_laws_hold_across_the_chain(done: Session) -> None:
    attributed = rows_of(done.store, "attributions/saliency", Attribution)
    uids = [row.uid for row in attributed]
    assert len(uids) == len(set(uids)) == 60
    for source in ("attribution", "random", "llm", "none"):
        assert [row.uid for row in rows_of(done.store, f"rationales/{source}", RationaleRow)] == uids
    assert len(rows_of(done.store, "predictions/teacher/0", Prediction)) == 20
    for folder in ("examples", "attributions/saliency", "rationales/random", "predictions/attribution/0"):
        manifest = done.store.manifest(folder)
        assert manifest is not None
        assert manifest.rows == sum(shard.rows for shard in manifest.shards)
        assert manifest.versions["captum"]
        assert manifest.schema_digest


def test_a_second_training_gives_the_same_losses(done: Session, tmp_path: Path) -> None:
    config = done.config.model_copy(update={"root": str(tmp_path)})
    again = session(config)
    take_over(done, again.store, EXAMPLES, TEACHER, "attributions", "rationales", "tokenizers")
    wiring = Wiring(config, again.store)
    run_works(again, "features", wiring.student_features(), wiring.cpu_pool)
    queue = wiring.training_queue()
    run_queue(again, "train", queue, queue.todo())
    for run in wiring.students():
        first, second = (json.loads(store.read(f"{run.target}/history.json")) for store in (done.store, again.store))
        assert first == second
        assert len(first["history"]) == 4
        assert {"loss", "gradient_norm", "learning_rate", "step"} <= set(first["history"][0])


def test_the_report_holds_every_model_and_every_stage(done: Session) -> None:
    report = done.store.read_json("report.json")
    accuracies = {(row["variant"], row["seed"]) for row in report["metrics"] if row["metric"] == "accuracy"}
    assert {("teacher", 0), ("label-only", 0), ("attribution", 0)} <= accuracies
    stages = report["stages"]
    assert {"prepare", "teach", "attribute", "rationalize attribution", "train label-only/0", "evaluate teacher/0"} <= set(stages)
    assert all(stages.values())
    assert report["config"] == done.config.model_dump(mode="json")
    assert len(report["examples"]) == 10
    html = done.store.read("report.html").decode()
    assert "label-only" in html
    assert not re.search(r"https?://", html.replace("http://www.w3.org", ""))
    assert "label-only" in done.store.read("report.md").decode()


def test_a_person_sees_one_line_per_stage_and_a_table(done: Session) -> None:
    lines = printed(done).splitlines()
    stages = [line.split()[0] for line in lines if line.endswith(")") and line[0].isalpha()]
    before = ["prepare", "teach", "teach", "teach", "attribute", "rationalize", "audit", "features"]
    assert stages == [*before, "train", "train", "train", "evaluate", "report"]  # a line for each run, then one for all of them
    assert any(line.startswith("label-only ") for line in lines)
    assert lines[-1].endswith("report.html")


def test_the_students_teacher_is_the_one_that_was_fine_tuned(done: Session) -> None:
    taught = done.store.manifest(TEACHER)
    assert taught is not None
    assert taught.figures["best_step"] == 2
    assert taught.figures["validation_rows"] == 10
    for folder in ("attributions/saliency", "predictions/teacher/0"):
        manifest = done.store.manifest(folder)
        assert manifest is not None
        assert taught.digest in manifest.inputs.values()
    models = {row.model for row in rows_of(done.store, "attributions/saliency", Attribution)}
    models |= {row.student for row in rows_of(done.store, "predictions/teacher/0", Prediction)}
    assert len(models) == 1
    assert models.pop().startswith("teacher/model@")


def test_a_teacher_near_chance_is_said_loudly(done: Session) -> None:
    (told,) = [line.strip() for line in printed(done).splitlines() if "validation accuracy" in line and "teacher" in line]
    assert re.match(
        r"WARNING: the teacher's validation accuracy is \d+\.\d% \(\d+\.\d% parsed, \d+\.\d% cut\) of 10 rows, chance is 25\.0%\.",
        told,
    )
    assert "mean nothing" in told


def test_a_second_run_of_the_chain_does_nothing(done: Session) -> None:
    again = session(done.config)
    pipeline.run(again)
    assert printed(again).count("complete already") == 9


def test_a_run_without_a_teacher_skips_its_stages(cluster: None, mini: Path) -> None:
    ran = session(without_teacher(mini, name="untaught"))
    pipeline.run(ran)
    stages = [line.split()[0] for line in printed(ran).splitlines() if line.endswith(")") and line[0].isalpha()]
    assert stages == ["prepare", "rationalize", "audit", "features", "train", "train", "train", "evaluate", "report"]
    assert all(ran.store.read_json("report.json")["stages"].values())
    with pytest.raises(StageError, match="the config has no `teacher`, so nothing is explained"):
        attribute.run(ran)


def test_a_stage_without_its_upstream_says_which_one_to_run(done: Session, mini: Path) -> None:
    empty = session(mini_config(mini, name="empty"))
    with pytest.raises(StageError, match="run the stage 'prepare' first"):
        Wiring(empty.config, empty.store).attributions()
    half = session(
        done.config.model_copy(update={"attribution": done.config.attribution.model_copy(update={"explained": "predicted"})})
    )
    with pytest.raises(
        StageError, match=r"attributions/saliency is not complete for this config; run the stage 'attribute' first"
    ):
        Wiring(half.config, half.store).rationales()


def test_a_run_directory_of_another_corpus_is_refused(done: Session) -> None:
    task = done.config.task.model_copy(update={"name": "other"})
    other = session(done.config.model_copy(update={"task": task}))
    with pytest.raises(StoreError, match="new run name"):
        pipeline.run(other)
    with pytest.raises(StoreError, match="new run name"):
        Wiring(other.config, other.store).attributions()


def test_a_corpus_with_other_files_is_refused_by_a_later_stage_too(done: Session, tmp_path: Path) -> None:
    shutil.copytree(done.config.task.path, tmp_path / "corpus")
    with (tmp_path / "corpus" / "train.jsonl").open("a") as file:
        file.write("{}\n")
    elsewhere = done.config.task.model_copy(update={"path": str(tmp_path / "corpus")})
    other = session(done.config.model_copy(update={"task": elsewhere}))
    before = done.store.read("config.json")
    for job in (pipeline, attribute):
        with pytest.raises(
            StoreError, match=r"train\.jsonl, a file of train, is not what .* was begun with: it had \d+ bytes and has"
        ):
            job.run(other)
    assert done.store.read("config.json") == before
