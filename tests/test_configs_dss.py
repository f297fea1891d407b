"""`configs/dss_*.yaml` are the published protocol of Distilling step-by-step, and train.

A.1 and tables are those of the paper (arXiv 2305.02301); files are those of its authors' code
(github.com/google-research/distilling-step-by-step); "Trainer" is a default of Hugging Face's Trainer that the code leaves.
"""

import json
import re
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kd.config import Config, read_config, read_yaml, validate
from kd.loading import load
from kd.rows import Features, RationaleRow, Row
from kd.shards import Work, completed
from kd.store import Store
from kd.tasks import anli, commonsense_qa, esnli, svamp
from kd.training.objectives import LabelOnly, MultiTask, Target
from kd.training.runs import MODEL, trained
from tests.mini import TINY, plain, prepared, studied
from tests.mini import taught as rationalised
from tests.test_configs_shards import ROOT, SIZES
from tests.tiny_runs import history, rationale_row

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "commonsense_qa": commonsense_qa.SAMPLE,
    "esnli": esnli.SAMPLE,
    "anli": anli.SAMPLE,
    "svamp": svamp.SAMPLE,
}
PROTOCOL: dict[str, object] = {
    "teacher": None,  # PaLM, whose rationales come with the corpus
    "student.name": "google/t5-v1_1-base",  # README; the paper says T5
    "student.spec": None,
    "student.dtype": "float32",  # run.py: bf16 is off unless asked for
    "student.max_input_tokens": 1024,  # A.1
    "student.max_answer_tokens": 256,  # run.py: labels and rationales
    "student.max_generated_tokens": 63,  # run.py: gen_max_len 64, which counts the start token
    "training.answers": "gold",  # run.py: label_type gt
    "training.steps": 10_000,  # A.1
    "training.batch_rows": 64,  # A.1
    "training.learning_rate": 5e-5,  # A.1
    "training.schedule": "linear",  # Trainer
    "training.warmup_steps": 0,  # Trainer
    "training.weight_decay": 0.0,  # Trainer
    "training.clip_norm": 1.0,  # Trainer
    "training.precision": "float32",  # run.py
    "training.eval_every_steps": 250,  # run.py
    "evaluation.split": "test",
    "evaluation.limit_rows": None,
}
SEEDS = 4  # A.1
MATCH = {"commonsense_qa": "exact", "esnli": "exact", "anli": "exact", "svamp": "value"}
"""When an answer is right (metrics.py): the very text, or the equation's value."""
BEFORE_THE_HOLDOUT = {"commonsense_qa": 9_741, "svamp": 800}
"""Rows of train of which a tenth is held out; the others have a validation split of their own (table 3, data_utils.py)."""
PUBLISHED = {
    "commonsense_qa": ("62.19", "63.29"),
    "esnli": ("88.38", "89.51"),
    "anli": ("43.58", "49.58"),
    "svamp": ("62.63", "65.50"),
}
"""Accuracy on test in %, T5-base: standard fine-tuning and step-by-step with the rationales of PaLM 540B (tables 1 and 2)."""
SINGLE_TASK = {"commonsense_qa": "61.37", "esnli": "88.88", "anli": "43.50", "svamp": "63.00"}
"""The same with rationale and label in one target (table 2)."""
WITH_ITS_LABELS = {
    "commonsense_qa": ("60.2", "61.1", "67.9", "69.3", "76.9", "77.5"),
    "esnli": ("81.5", "82.6", "83.1", "84.5", "84.2", "85.6"),
    "anli": ("37.2", "44.5", "52.7", "62.2", "67.8", "69.8"),
    "svamp": ("42.6", "44.8", "55.0", "57.2", "63.3", "66.8"),
}
"""The same where PaLM's labels are learned, of T5-base, large and XXL (figure 7)."""
SEQUENCES = {
    "commonsense_qa": (
        "Where would you put a kettle to boil water?\nAnswer Choices:\n(a) stove\n(b) garden\n(c) shelf\n(d) bath\n(e) car",
        "stove",
    ),
    "esnli": ("A girl sleeps under a tree.</s>A girl is running.", "contradiction"),
    "anli": (
        "The Linden Bridge was built in 1904 and closed to cars in 1987.</s>Cars used the Linden Bridge for over eighty years.",
        "entailment",
    ),
    "svamp": ("Ada packed 6 boxes with 12 pens in each\nHow many pens did she pack?", "( 6.0 * 12.0 )"),
}
"""Input and label of the first sample of each task, as run.py and data_utils.py write them."""
R = TypeVar("R", bound=Row)
each = pytest.mark.parametrize("name", SAMPLES)


def path_of(name: str) -> str:
    return str(ROOT / "configs" / f"dss_{name}.yaml")


def config_of(name: str) -> Config:
    return read_config("x", "", [path_of(name)])


def at(config: Config, key: str) -> object:
    return reduce(getattr, key.split("."), config)


def test_there_is_a_config_for_each_of_the_four_tasks() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("dss_*")} == {f"dss_{name}" for name in SAMPLES}


@each
def test_the_settings_are_the_published_ones(name: str) -> None:
    config = config_of(name)
    assert config.task.type == name
    assert {key: at(config, key) for key in PROTOCOL} == PROTOCOL
    assert len(config.training.seeds) == SEEDS
    assert config.task.match == MATCH[name]


@each
def test_students_learn_labels_without_prefix_or_both_targets_at_half_the_weight(name: str) -> None:
    finetuning, step_by_step = config_of(name).training.variants
    assert (finetuning.source, finetuning.objective) == ("none", LabelOnly())
    both = MultiTask(alpha=0.5, label_prefix="predict: ", rationale_prefix="explain: ")  # run.py
    assert (step_by_step.source, step_by_step.objective) == ("llm", both)


@each
def test_a_row_reads_and_teaches_what_the_authors_code_makes_of_it(name: str) -> None:
    config = config_of(name)
    row = config.task.example(SAMPLES[name][0], "train")
    text, label = SEQUENCES[name]
    finetuning, step_by_step = (variant.objective for variant in config.training.variants)
    assert "".join(segment.text for segment in row.segments) == text
    assert finetuning.targets(row) == [Target(0, "", label)]
    assert step_by_step.targets(rationale_row(row, "why")) == [
        Target(0, "predict: ", label),
        Target(1, "explain: ", "why", may_be_cut=True),
    ]


@each
def test_the_splits_are_the_published_ones_and_the_step_is_selected_on_all_of_validation(name: str) -> None:
    config, sizes = config_of(name), SIZES[f"dss_{name}"]
    assert config.task.splits == ["train", "validation", "test"]
    if name in BEFORE_THE_HOLDOUT:
        records, holdout = BEFORE_THE_HOLDOUT[name], config.task.holdout
        assert holdout is not None
        assert (holdout.fraction, holdout.seed, holdout.by) == (0.1, 0, "position")  # run.py
        assert holdout.positions(records).sum() == sizes["validation"] == records - sizes["train"]
    else:
        assert config.task.holdout is None
    assert config.training.eval_rows == sizes["validation"]


@each
def test_an_epoch_shuffles_all_of_train(name: str) -> None:
    config = config_of(name)
    assert config.training.window_shards * config.prepare.rows_per_shard >= SIZES[f"dss_{name}"]["train"]


@each
def test_each_published_number_stands_beside_what_it_was_published_for(name: str) -> None:
    lines = Path(path_of(name)).read_text(encoding="utf-8").splitlines()
    beside = dict(re.findall(r"# published: ([\d.]+) .*\n +- \{?name: ([a-z-]+)", "\n".join(lines)))
    assert beside == dict(zip(PUBLISHED[name], ("standard-finetuning", "step-by-step"), strict=True))


@each
def test_what_was_published_for_one_target_stands_in_the_head(name: str) -> None:
    text = Path(path_of(name)).read_text(encoding="utf-8")
    assert re.findall(r'^# T5-base .*"single-task"\): ([\d.]+) \(table 2\)\.$', text, re.MULTILINE) == [SINGLE_TASK[name]]


@each
def test_what_was_published_for_the_llms_labels_stands_in_the_head(name: str) -> None:
    text = Path(path_of(name)).read_text(encoding="utf-8")
    assert "--training.answers=llm" in text
    assert tuple(re.findall(r"^# T5-.* ([\d.]+) +([\d.]+) +read off figure 7", text, re.MULTILINE)) == tuple(
        zip(WITH_ITS_LABELS[name][::2], WITH_ITS_LABELS[name][1::2], strict=True)
    )


# --- they train -------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path, records: list[dict[str, Any]], id_column: str) -> None:
    """The samples three times in train, once in the other splits."""
    folder.mkdir()
    for split, copies in {"train": 3, "validation": 1, "test": 1}.items():
        rows = [record | {id_column: f"{record[id_column]}-{copy}"} for copy in range(copies) for record in records]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_miniature(name: str, folder: Path) -> Config:
    """The config with a model from a spec and three steps of few rows on one CPU. The rest, all limits too, is its own."""
    data = read_yaml(path_of(name))
    write_corpus(folder / "corpus", SAMPLES[name], str(config_of(name).task.id))
    files = {split: f"{split}[.-]*" for split in ("train", "validation", "test")}
    limits = {key: tokens for key, tokens in data["student"].items() if key.startswith("max_")}
    data["student"] = {"spec": TINY} | limits
    few = {"steps": 3, "batch_rows": 6, "micro_batch_tokens": 500, "eval_every_steps": 2, "log_every_steps": 1, "seeds": [0]}
    data["root"] = str(folder / "runs")
    data["task"] |= {"path": str(folder / "corpus"), "files": files, "holdout": None}
    data["prepare"] = {"rows_per_shard": 5}
    data["training"] |= few | {"num_workers": 1, "threads_per_worker": 1, "save_every_steps": 0}
    del data["cluster"]
    return validate(data, name)


def rows_of(store: Store, work: Work, row_type: type[R]) -> list[R]:
    """What a finished piece of work wrote."""
    folder, manifest = completed(store, work)
    return [row for shard in manifest.shards for row in store.read_rows(f"{folder}/{shard.file}", row_type)]


@each
def test_a_config_trains_for_a_few_steps_with_a_model_from_a_spec(name: str, tmp_path: Path) -> None:
    wiring = studied(rationalised(prepared(in_miniature(name, tmp_path))))
    store, queue = wiring.store, wiring.training_queue()
    assert queue.todo() == []
    finetuning, step_by_step = history(queue, 0), history(queue, 1)
    assert [entry["step"] for entry in step_by_step] == [1, 2, 3]
    assert all(set(entry["loss"]) == {"label"} for entry in finetuning)
    assert all(entry["loss"]["label"] > 0 and entry["gradient_norm"] > 0 for entry in (*finetuning, *step_by_step))
    assert any((entry["loss"]["rationale"] or 0) > 0 for entry in step_by_step)
    assert [entry["learning_rate"] for entry in step_by_step] == pytest.approx([5e-5, 5e-5 * 2 / 3, 5e-5 / 3])
    rationales = rows_of(store, wiring.rationales()["llm"], RationaleRow)
    assert {row.rationale_text for row in rationales} == {row.get("llm_rationale") or "" for row in SAMPLES[name]}
    for run in wiring.students():
        folder, manifest = trained(store, run, wiring.config.training)
        assert manifest.figures["best_step"] in (2, 3)
        assert manifest.figures["validation_rows"] == len(SAMPLES[name])
        assert Path(store.path(f"{folder}/{MODEL}/model.safetensors")).exists()


@each
def test_students_read_the_published_strings_token_by_token(name: str, tmp_path: Path) -> None:
    """The tokenizer, made of the corpus, takes white space for a space, as T5's does. NLI's separator is its end of sequence,
    behind which decoding writes a space."""
    wiring = rationalised(prepared(in_miniature(name, tmp_path)))
    plain(wiring.store, wiring.student_features())
    finetuning, step_by_step = (rows_of(wiring.store, work, Features) for work in wiring.student_features())
    uid = f"train/{SAMPLES[name][0][str(wiring.config.task.id)]}-0"
    first = [next(row for row in rows if row.uid == uid) for rows in (finetuning, step_by_step)]
    tokenizer = load(wiring.students()[0].model, "meta").tokenizer
    text, label = (" ".join(string.replace("</s>", "</s> ").split()) for string in SEQUENCES[name])
    assert [tokenizer.decode(ids) for ids in first[0].input_ids] == [f"{text}</s>"]
    assert [tokenizer.decode(ids) for ids in first[1].input_ids][:1] == [f"predict: {text}</s>"]
    assert {tokenizer.decode(row.target_ids[0]) for row in first} == {f"{label}</s>"}
    ends = first[1].input_ids[0].count(tokenizer.eos_token_id)
    assert ends == (2 if "nli" in name else 1)


@each
def test_the_llms_labels_can_be_learned_instead_and_rows_without_one_are_counted(name: str, tmp_path: Path) -> None:
    config = in_miniature(name, tmp_path)
    training = config.training.model_copy(update={"answers": "llm"})
    wiring = studied(rationalised(prepared(config.model_copy(update={"training": training}))))
    labels = [record["llm_label"] for record in SAMPLES[name] if "llm_label" in record]
    assert 0 < len(labels) < len(SAMPLES[name]), "some records have one"
    for work in wiring.student_features():
        _, manifest = completed(wiring.store, work)
        assert (manifest.rows, manifest.errors) == (3 * len(SAMPLES[name]), {})
        assert manifest.counts["teaches_nothing"] == 3 * (len(SAMPLES[name]) - len(labels))
    rows = rows_of(wiring.store, wiring.student_features()[0], Features)
    tokenizer = load(wiring.students()[0].model, "meta").tokenizer
    learned = {tokenizer.decode(ids, skip_special_tokens=True) for row in rows for ids in row.target_ids}
    assert {"".join(label.split()) for label in learned} == {"".join(label.split()) for label in labels}
    assert [run.name for run in wiring.students()] == ["standard-finetuning/0", "step-by-step/0"]
