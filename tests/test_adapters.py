"""Switches of training that leave the model as it is: adapters, recomputed layers, memory of the CPU. And what is exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from kd.errors import ConfigError
from kd.families.base import Family
from kd.loading import load, save
from kd.models import Loaded
from kd.training.adapters import Lora, add_adapters, merged
from kd.training.config import LoopConfig
from kd.training.engine import Engine
from kd.training.runs import MODEL, Queue
from kd.training.session import open_run, train_here
from kd.training.validation import Score, Validation, sample
from tests import tiny
from tests.deepspeed_worker import LORA, STOPPING, SWITCHES
from tests.processes import work_together
from tests.tiny_runs import SHORT, figures, history, tiny_queue

torch.set_num_threads(1)
MODEL_STATES = "mp_rank_00_model_states.pt"
DROPPING = {"lora": {"rank": 4, "targets": ["q", "v"], "dropout": 0.3}}


def trained(folder: Path, *changes: dict[str, object], dropout: float = 0.0, student: Path | None = None) -> Queue:
    """A finished queue of plain torch."""
    config = SHORT.model_dump()
    for change in changes:
        config |= change
    queue = tiny_queue(folder, LoopConfig.model_validate(config), dropout=dropout, student=student)
    train_here(queue)
    return queue


def model_folder(queue: Queue) -> Path:
    return Path(queue.store.path(f"{queue.items[0].folder}/{MODEL}"))


def validation_loss(queue: Queue, folder: Path) -> float:
    """The mean loss per answer token of the validation rows, in nats, of a saved model under plain transformers."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)
    assert model.lm_head.weight is model.shared.weight
    run, nats, tokens = queue.items[0].run, 0.0, 0
    for row in sample(queue.store, run.examples, run.validation, 100):
        text = run.objective.answer_prefix + "".join(segment.text for segment in row.segments)
        labels = tokenizer(text_target=row.target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            nats += model(**tokenizer(text, return_tensors="pt"), labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    return nats / tokens


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_begin_as_nothing_and_they_alone_are_trained(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LoopConfig.model_validate(SHORT.model_dump() | LORA))
    model = load(queue.items[0].run.model, "cpu").model
    opened = open_run(queue, queue.items[0].run, tmp_path / "scratch", rank=0, world=1)
    asked = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 4]])}
    assert torch.equal(opened.student.model(**asked).logits, model(**asked).logits)
    named = dict(opened.student.model.named_parameters())
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in named.items())
    # 2 encoder layers with one attention and 2 decoder layers with two: 6 of q and of v, each 4 x (16 + 16).
    assert opened.trained_parameters == 12 * 4 * (16 + 16)
    assert opened.parameters == model.num_parameters()


def test_an_export_has_its_adapters_merged_in_and_says_what_was_trained(tmp_path: Path) -> None:
    queue = trained(tmp_path, LORA)
    item = queue.items[0]
    before, after = load(item.run.model, "cpu").model.state_dict(), load_file(model_folder(queue) / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.split(".")[-2] in ("q", "v")}
    assert after.keys() == load_file(model_folder(trained(tmp_path / "whole")) / "model.safetensors").keys()
    assert validation_loss(queue, model_folder(queue)) == pytest.approx(history(queue)[-1]["validation_loss"], abs=1e-5)
    manifest = queue.store.manifest(item.folder)
    assert manifest is not None
    assert (manifest.figures["trained_parameters"], manifest.figures["parameters"]) == (1536, 13376)


def test_the_config_of_an_export_is_that_of_a_model_trained_without_switches(tmp_path: Path) -> None:
    plain, switched = trained(tmp_path / "a"), trained(tmp_path / "b", LORA, {"gradient_checkpointing": True})
    for name in ("config.json", "generation_config.json"):
        assert (model_folder(switched) / name).read_text() == (model_folder(plain) / name).read_text()
    assert sorted(path.name for path in model_folder(switched).iterdir()) == sorted(
        path.name for path in model_folder(plain).iterdir()
    )


def test_adapters_of_a_seed_are_the_same_and_of_another_seed_others(tmp_path: Path) -> None:
    queue = tiny_queue(tmp_path, LoopConfig.model_validate(SHORT.model_dump() | LORA))
    run = queue.items[0].run
    weights = []
    for seed in (0, 0, 1):
        opened = open_run(queue, replace(run, seed=seed), tmp_path / "scratch", rank=0, world=1)
        weights.append(torch.cat([p.flatten() for n, p in opened.student.model.named_parameters() if "lora_A" in n]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("made", "targets"),
    [(tiny.tiny_llama, ["q_proj", "v_proj"]), (tiny.tiny_gpt2, ["c_attn"]), (tiny.tiny_bart, ["self_attn.q_proj"])],
    ids=["llama", "gpt2", "bart"],
)
def test_other_families_learn_by_adapters(tmp_path: Path, made: Callable[[], Loaded], targets: list[str]) -> None:
    save(made(), tmp_path / "model")
    rate = {"learning_rate": 0.03, "clip_norm": 0.0}
    queue = trained(tmp_path / "run", {"lora": {"targets": targets}}, rate, student=tmp_path / "model")
    assert history(queue)[-1]["loss"]["label"] < history(queue)[0]["loss"]["label"]
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(model_folder(queue) / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.endswith(tuple(f"{target}.weight" for target in targets))}


@pytest.mark.parametrize(
    ("targets", "unknown"), [(("q", "query"), "query"), (("shared",), "shared"), (("lm_head",), "lm_head")], ids=str
)
def test_a_target_that_cannot_be_adapted_is_refused(tmp_path: Path, targets: tuple[str, ...], unknown: str) -> None:
    expected = (
        f"{unknown} names no linear layer of T5.* with a weight of its own; expected names among k, o, q, v, wi_0, wi_1, wo"
    )
    with pytest.raises(ConfigError, match=expected):
        add_adapters(tiny.tiny_t5(tmp_path).model, Lora(targets=targets))


def test_merging_leaves_the_adapted_model_as_it_was(tmp_path: Path) -> None:
    model = tiny.tiny_t5(tmp_path).model
    add_adapters(model, Lora(targets=("q",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    modules, plain = list(model.modules()), tiny.tiny_t5(tmp_path).model
    asked = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[0, 4]])}
    expected = model(**asked).logits
    with merged(model):
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert torch.allclose(model(**asked).logits, expected, atol=1e-5)
        assert not torch.allclose(plain(**asked).logits, expected, atol=1e-2)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_in_half_precision_a_merged_weight_is_rounded_once(tmp_path: Path) -> None:
    model = tiny.tiny_t5(tmp_path).model
    add_adapters(model, Lora(targets=("q",)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16)
    name = "encoder.block.0.layer.0.SelfAttention.q"
    layer = model.get_submodule(name)
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = layer.get_base_layer().weight.double() + layer.scaling["default"] * (b @ a)
    with merged(model), torch.no_grad():
        found = model.get_submodule(name).weight
        assert found.dtype == torch.bfloat16
        step = 2.0 ** (exact.abs().log2().floor() - 7)
        assert ((found.double() - exact).abs() <= 0.501 * step).all()


def test_the_model_that_is_scored_is_the_one_that_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[dict[str, torch.Tensor]] = []
    plain = Validation.score

    def score(validation: Validation, engine: Engine, family: Family) -> Score:
        scored.append({name: weight.clone() for name, weight in family.model.state_dict().items()})
        return plain(validation, engine, family)

    monkeypatch.setattr(Validation, "score", score)
    exported = load_file(model_folder(trained(tmp_path, LORA)) / "model.safetensors")
    assert all(exported.keys() <= weights.keys() for weights in scored)
    assert not any("lora" in name for weights in scored for name in weights)
    same = [all(torch.equal(weights[name], exported[name]) for name in exported) for weights in scored]
    assert same.count(True) == 1, "one of the validated steps is the best"


# --- recomputed layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, DROPPING], ids=["whole", "lora"])
def test_recomputing_layers_changes_no_loss(tmp_path: Path, change: dict[str, object]) -> None:
    kept = trained(tmp_path / "a", change, dropout=0.1)
    again = trained(tmp_path / "b", change, {"gradient_checkpointing": True}, dropout=0.1)
    assert figures(history(again)) == pytest.approx(figures(history(kept)), abs=1e-6)


def test_layers_are_recomputed_where_the_config_says_so(tmp_path: Path) -> None:
    for folder, wanted in (("a", False), ("b", True)):
        queue = tiny_queue(tmp_path / folder, SHORT.model_copy(update={"gradient_checkpointing": wanted}))
        model = open_run(queue, queue.items[0].run, tmp_path / "scratch", rank=0, world=1).student.model.train()
        calls: list[int] = []
        model.encoder.block[0].layer[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[4]])).loss.backward()
        assert len(calls) == (2 if wanted else 1)


# --- two workers with DeepSpeed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switches")
    work_together("tests.deepspeed_worker", 2, folder, "two-zero2", *SWITCHES)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Queue]:
    """The same runs in one process with plain torch."""
    runs: dict[str, dict[str, object]] = {"whole": {}, "lora": LORA, "stopping": STOPPING}
    return {name: trained(tmp_path_factory.mktemp(name), change) for name, change in runs.items()}


def entries(outcomes: Path, case: str, name: str = "whole") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((outcomes / case / f"{name}.json").read_text())
    return found


def near(case: str) -> dict[str, float]:
    return {"rel": 0.03} if "bfloat16" in case else {"abs": 1e-5}


@pytest.mark.parametrize("case", [case for case in SWITCHES if "stopping" not in case])
def test_two_workers_learn_what_one_process_does(outcomes: Path, plain: dict[str, Queue], case: str) -> None:
    expected = history(plain["lora" if "lora" in case else "whole"])
    assert figures(entries(outcomes, case)) == pytest.approx(figures(expected), **near(case))


@pytest.mark.parametrize("case", ["zero2-checkpointing", "zero2-offload"])
def test_what_saves_memory_changes_no_loss_of_the_same_stage(outcomes: Path, case: str) -> None:
    assert figures(entries(outcomes, case)) == pytest.approx(figures(entries(outcomes, "two-zero2")), abs=1e-6)


@pytest.mark.parametrize("case", SWITCHES)
def test_a_checkpoint_goes_on_exactly(outcomes: Path, case: str) -> None:
    assert entries(outcomes, case, "resumed") == entries(outcomes, case)
    first, second = [load_file(outcomes / case / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", [case for case in SWITCHES if "lora" in case])
def test_a_checkpoint_of_adapters_holds_them_and_their_optimizer_and_nothing_of_the_model(outcomes: Path, case: str) -> None:
    # Of 1,536 numbers, each in 4 bytes: the weight, its copy in the optimizer, two moments; then counts of steps and padding.
    held = sum(bytes_held(torch.load(path, weights_only=False)) for path in (outcomes / case / "saved").rglob("*.pt"))
    assert 1536 * 4 * 3 <= held < 1536 * 4 * 4 + 1024
    assert bytes_held(torch.load(outcomes / "two-zero2" / "saved" / "engine" / MODEL_STATES, weights_only=False)) >= 13376 * 4


def bytes_held(content: Any) -> int:
    """What all tensors of a file take, those that share their memory once."""
    storages: dict[int, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict | list | tuple):
            for each in value.values() if isinstance(value, dict) else value:
                look(each)

    look(content)
    return sum(storages.values())


@pytest.mark.parametrize("case", [case for case in SWITCHES if "stopping" not in case])
def test_an_export_loads_tied_and_has_the_loss_that_training_saw(outcomes: Path, plain: dict[str, Queue], case: str) -> None:
    folder, seen = outcomes / case / "whole", entries(outcomes, case)[-1]["validation_loss"]
    assert validation_loss(plain["whole"], folder) == pytest.approx(seen, **near(case))
    written = load_file(folder / "model.safetensors").keys()
    assert written == load_file(model_folder(plain["whole"]) / "model.safetensors").keys()


def test_two_workers_stop_where_one_process_does_and_export_both_steps(outcomes: Path, plain: dict[str, Queue]) -> None:
    seen = {entry["step"]: entry.get("validation_loss") for entry in entries(outcomes, "zero3-stopping")}
    manifest = plain["stopping"].store.manifest(plain["stopping"].items[0].folder)
    assert manifest is not None
    best, last = manifest.figures["best_step"], manifest.figures["last_step"]
    assert best < last == max(seen) < 14
    for name, step in (("whole", best), ("whole-last", last)):
        assert validation_loss(plain["stopping"], outcomes / "zero3-stopping" / name) == pytest.approx(seen[step], abs=1e-5)


def test_nothing_was_compiled(outcomes: Path) -> None:
    assert not list(outcomes.glob("extensions/**/*.so"))
