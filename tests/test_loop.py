"""The training loop with plain torch: what it computes, and that a restart, a second run and another cut change nothing."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from kd.errors import ConfigError, StageError
from kd.loading import load, save
from kd.models import Loaded
from kd.rows import Example, Features, RationaleRow, RowError
from kd.training.config import LoopConfig
from kd.training.engine import TorchEngine, adamw, clip_gradient
from kd.training.loop import State
from kd.training.runs import MODEL, Queue, trained
from kd.training.session import train_here
from kd.training.validation import Score, sample
from tests import tiny
from tests.tiny_runs import SHORT, history, score_of, tiny_queue, trainer

torch.set_num_threads(1)  # more than there is to do, and other tests run beside these
LONG = SHORT.model_copy(update={"steps": 60, "eval_every_steps": 20, "log_every_steps": 10})


def ignore(state: State) -> None:
    """No progress file."""


def losses(queue: Queue, item: int = 0) -> list[float]:
    return [value for entry in history(queue, item) for value in (*entry["loss"].values(), entry["gradient_norm"])]


def test_the_first_loss_is_the_sum_over_tokens_divided_once_by_their_number(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    train_here(queue)
    model = load(queue.items[0].run.model, "cpu").model
    with trainer(queue) as fresh:
        rows = fresh.lessons.order.rows_of_batch(0).tolist()
    run = queue.items[0].run
    features = [row for shard in run.shards for row in queue.store.read_rows(f"{run.features}/{shard.file}", Features)]
    sums, counts = [0.0, 0.0], [0, 0]
    for row in rows:
        for term, inputs, targets in zip(features[row].term, features[row].input_ids, features[row].target_ids, strict=True):
            mean = model(input_ids=torch.tensor([inputs]), labels=torch.tensor([targets])).loss.item()
            sums[term] += mean * len(targets)
            counts[term] += len(targets)
    first = history(queue)[0]["loss"]
    assert first == pytest.approx({"label": sums[0] / counts[0], "rationale": sums[1] / counts[1]}, rel=1e-5)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path: Path) -> None:
    first, second = [tiny_queue(tmp_path / name, SHORT, dropout=0.1, seeds=(0, 1)) for name in ("a", "b")]
    train_here(first)
    train_here(second)
    assert losses(first) == losses(second)
    assert losses(first, 0) != losses(first, 1)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 90])
def test_however_a_batch_is_cut_it_teaches_the_same(tmp_path: Path, micro_batch_tokens: int) -> None:
    at_once, in_parts = [
        tiny_queue(tmp_path / str(tokens), SHORT.model_copy(update={"micro_batch_tokens": tokens}))
        for tokens in (10_000, micro_batch_tokens)
    ]
    train_here(at_once)
    train_here(in_parts)
    assert losses(in_parts) == pytest.approx(losses(at_once), rel=1e-5)
    assert [entry["tokens"] for entry in history(in_parts)] == [entry["tokens"] for entry in history(at_once)]


def test_the_best_step_is_exported_for_plain_transformers(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LONG)
    train_here(queue)
    folder, manifest = trained(queue.store, queue.items[0].run, LONG)
    scores = {entry["step"]: score_of(entry) for entry in history(queue) if "validation_accuracy" in entry}
    best = scores[manifest.figures["best_step"]]
    assert sorted(scores) == [20, 40, 60]
    assert not any(score.beats(best) for score in scores.values())
    assert manifest.figures["validation_accuracy"] == best.accuracy
    assert accuracy(queue, f"{tmp_path}/{folder}/{MODEL}") == best.accuracy


def accuracy(queue: Queue, folder: str) -> float:
    """The share of validation rows that plain transformers gets right with a saved model."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    run = queue.items[0].run
    rows = sample(queue.store, run.examples, run.validation, 100)
    right = 0
    for row in rows:
        text = run.objective.answer_prefix + "".join(segment.text for segment in row.segments)
        answer = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
        right += tokenizer.decode(answer[0], skip_special_tokens=True).strip() == row.target
    return right / len(rows)


def test_a_student_learns(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LONG)
    train_here(queue)
    first, last = history(queue)[0]["loss"], history(queue)[-1]["loss"]
    assert last["label"] < 0.5 * first["label"]
    assert last["rationale"] < 0.7 * first["rationale"]


@pytest.mark.parametrize("made", [tiny.tiny_llama, tiny.tiny_gpt2], ids=["llama", "gpt2"])
def test_a_causal_model_learns_by_the_same_loop(tmp_path: Path, made: Callable[[], Loaded]) -> None:
    save(made(), tmp_path / "model")
    queue = tiny_queue(tmp_path / "run", LONG, student=tmp_path / "model")
    train_here(queue)
    losses = [entry["loss"]["label"] for entry in history(queue)]
    assert losses[-1] < 0.7 * losses[0]
    assert AutoModelForCausalLM.from_pretrained(queue.store.path(f"{queue.items[0].folder}/{MODEL}")).num_parameters() > 0


def test_without_validation_the_last_step_is_kept(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT.model_copy(update={"eval_rows": 0}))
    train_here(queue)
    _, manifest = trained(queue.store, queue.items[0].run, queue.training)
    assert manifest.figures["best_step"] == 6
    assert manifest.figures["validation_accuracy"] is None
    assert queue.store.exists(f"{queue.items[0].folder}/{MODEL}/model.safetensors")


def validating_on(queue: Queue, change: Callable[[Example], Example]) -> Queue:
    """The queue with every row of validation changed."""
    run = queue.items[0].run
    for shard in run.validation:
        path = f"{run.examples}/{shard.file}"
        queue.store.publish_rows(path, [change(row) for row in queue.store.read_rows(path, Example)], Example, {})
    return queue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": RowError("too_long", "made so"), "target": None}, r"examples: all 8 rows of validation have an error"),
        ({"target": "river " * 20}, r"none of 8 rows of validation can be read and answered .*, the first one for too_long \("),
    ],
)
def test_validation_rows_that_are_of_no_use_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    queue = validating_on(tiny_queue(tmp_path, SHORT), lambda row: replace(row, **change))
    with pytest.raises(StageError, match=message):
        train_here(queue)
    train_here(replace(queue, training=SHORT.model_copy(update={"eval_rows": 0})))


@pytest.mark.parametrize(("patience", "told"), [(2, ["words/0", "label/0"]), (None, [])])
@pytest.mark.parametrize("is_empty", [True, False], ids=["empty", "unlabelled"])
def test_patience_without_labels_to_validate_on_is_warned_of(
    tmp_path: Path, is_empty: bool, patience: int | None, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = SHORT.model_copy(update={"patience_evals": patience, "eval_every_steps": 1})
    queue = validating_on(tiny_queue(tmp_path, config), lambda row: replace(row, target=None))
    if is_empty:
        items = [replace(item, run=replace(item.run, validation=[])) for item in queue.items]
        queue = replace(queue, items=items)
    with caplog.at_level(logging.WARNING):
        train_here(queue)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == told
    assert [entry["step"] for entry in history(queue)] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT.model_copy(update={"learning_rate": 1e30, "clip_norm": 0.0}))
    with pytest.raises(StageError, match="Lower the learning rate"):
        train_here(queue)
    assert queue.store.manifest(queue.items[0].folder) is None


def test_a_gradient_that_is_not_finite_is_told_by_its_step_though_a_later_one_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trainer(tiny_queue(tmp_path, SHORT.model_copy(update={"log_every_steps": 5}))) as fresh:
        plain, factors = fresh.engine.step, iter([1.0, 1.0, math.inf, 1.0, 1.0])
        monkeypatch.setattr(fresh.engine, "step", lambda rate: plain(rate) * next(factors))
        with pytest.raises(StageError, match=r"the loss is [\d.]+, its gradient inf at step 3; .*Lower the learning rate"):
            fresh.train(ignore, lambda: None)


def test_finished_runs_are_skipped(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    train_here(queue)
    before = [queue.store.manifest(item.folder) for item in queue.items]
    assert queue.todo() == []
    train_here(queue)
    assert [queue.store.manifest(item.folder) for item in queue.items] == before


def test_training_on_nothing_is_refused_before_it_starts(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    missing = replace(queue.items[0].run, features="students/nobody/features")
    with pytest.raises(StageError, match="students/nobody/features is not complete"):
        train_here(replace(queue, items=[replace(queue.items[0], run=missing)]))
    manifest = queue.store.manifest(queue.items[0].run.features)
    assert manifest is not None
    nothing = manifest.rows - sum(manifest.errors.values())
    queue.store.publish_manifest(queue.items[0].run.features, replace(manifest, counts={"teaches_nothing": nothing}))
    with pytest.raises(StageError, match="none of its 24 rows has anything to teach"):
        train_here(queue)


def test_a_variant_whose_rationales_are_all_empty_is_refused_before_it_starts(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    words, label = queue.items
    for item in queue.items:
        manifest = queue.store.manifest(item.run.features)
        assert manifest is not None
        queue.store.publish_manifest(item.run.features, replace(manifest, inputs={"rationales/words": "d"}))
    for shard in words.run.shards:
        notes = {"rows": shard.rows, "empty_rationale": shard.rows - 1, "error.too_long": 1}
        queue.store.publish_rows(f"rationales/words/{shard.file}", [], RationaleRow, notes)
    with pytest.raises(StageError, match=r"variant 'words' learns rationales, but in .*rationales/words every row of train"):
        train_here(queue)
    queue.check([label])
    last = words.run.shards[-1]
    queue.store.publish_rows(f"rationales/words/{last.file}", [], RationaleRow, {"rows": last.rows})
    queue.check(queue.items)


def test_a_run_is_recognised_by_everything_that_made_it(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    run = queue.items[0].run
    others = [
        replace(run, seed=1),
        replace(run, inputs={"features": "another"}),
        replace(run, model=replace(run.model, tokenizer_folder="tokenizers/other")),
    ]
    digests = {run.digest(SHORT), *(other.digest(SHORT) for other in others)}
    digests.add(run.digest(SHORT.model_copy(update={"steps": 7})))
    assert len(digests) == 5
    assert run.digest(SHORT.model_copy(update={"max_failures": 9})) == run.digest(SHORT)
    assert run.digest(SHORT.model_copy(update={"num_workers": 2, "threads_per_worker": 3})) == run.digest(SHORT)
    with pytest.raises(StageError, match="run the stage 'train' first"):
        trained(queue.store, run, SHORT)


def test_matrices_decay_and_norms_and_biases_do_not(tmp_path: Path) -> None:
    model = load(tiny_queue(tmp_path, SHORT).items[0].run.model, "cpu").model
    decayed, kept = adamw(model, SHORT).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = [{names[id(parameter)].split(".")[-2] for parameter in group["params"]} for group in (decayed, kept)]
    assert kinds[1] == {"layer_norm", "final_layer_norm", "relative_attention_bias"}
    assert not kinds[0] & kinds[1]
    assert {parameter.dim() for parameter in decayed["params"]} == {2}


@pytest.mark.parametrize(("clip_norm", "after"), [(0.0, 5.0), (1.0, 1.0), (9.0, 5.0)])
def test_clipping_reports_the_norm_before_it(clip_norm: float, after: float) -> None:
    weights = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradient(weights, clip_norm).item() == 5.0
    assert torch.cat([weight.grad for weight in weights if weight.grad is not None]).norm().item() == pytest.approx(after)


@pytest.mark.parametrize("change", [{"precision": "bfloat16", "zero_stage": 1}, {"num_workers": 2}])
def test_the_plain_engine_says_what_it_cannot_do(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="float32 in one process"):
        TorchEngine(torch.nn.Linear(1, 1), LoopConfig(**change), "cpu")  # type: ignore[arg-type]


def test_accuracy_decides_and_the_loss_breaks_ties() -> None:
    def score(accuracy: float, loss_nats: float) -> Score:
        return Score(accuracy, loss_nats, parse_rate=1.0, truncation_rate=0.0)

    assert score(0.5, 9.0).beats(None)
    assert score(0.6, 9.0).beats(score(0.5, 1.0))
    assert score(0.5, 0.9).beats(score(0.5, 1.0))
    assert not score(0.5, 1.0).beats(score(0.5, 1.0))


def test_the_validation_sample_is_the_same_every_time_and_bounded(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, SHORT)
    run = queue.items[0].run
    few = [row.uid for row in sample(queue.store, run.examples, run.validation, 3)]
    assert len(few) == 3
    assert few == [row.uid for row in sample(queue.store, run.examples, run.validation, 3)]
    assert len(sample(queue.store, run.examples, run.validation, 100)) == 8
    assert all(row.target for row in sample(queue.store, "examples", run.shards, 100))
    assert sample(queue.store, run.examples, run.validation, 0) == []
