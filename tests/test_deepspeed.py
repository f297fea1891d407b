"""DeepSpeed trains what plain torch trains: at every ZeRO stage, on one worker and on two, however a batch is cut.

Losses and gradient norms are compared step by step, with clipping on: AdamW hides a constant factor, the norm does not.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd.deepspeed_engine import whole_copy
from kd.training.config import LoopConfig
from kd.training.runs import MODEL, Queue
from kd.training.session import train_here
from tests import tiny
from tests.deepspeed_worker import CASES, DROPOUT, TOKENS
from tests.processes import ROOT, work_together
from tests.tiny_runs import SHORT, figures, history, tiny_queue

GOLDEN = ROOT / "tests" / "golden" / "losses.json"
"""What plain torch made of the first run. Where a change of it is meant, `python -m tests.test_deepspeed` writes it anew."""
pytestmark = pytest.mark.timeout(900)  # the first test starts processes that work through all cases
FULL = [name for name, case in CASES.items() if case.config.precision == "float32" and not case.dropout]
HALF = [name for name, case in CASES.items() if case.config.precision == "bfloat16"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two made of their cases. No compiler is on their PATH, so all of this needs none."""
    folder = tmp_path_factory.mktemp("deepspeed")
    for world in (1, 2):
        work_together("tests.deepspeed_worker", world, folder, *(name for name, case in CASES.items() if case.world == world))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Queue]:
    """The same run in one process with plain torch, the batch in one piece; by the rows of a batch."""
    return {rows: trained_plainly(tmp_path_factory.mktemp(f"plain{rows}"), rows) for rows in (1, 8)}


def trained_plainly(folder: Path, batch_rows: int, dropout: float = 0.0, micro_batch_tokens: int = TOKENS["all"]) -> Queue:
    changes = {"batch_rows": batch_rows, "micro_batch_tokens": micro_batch_tokens}
    queue = tiny_queue(folder, LoopConfig(**SHORT.model_dump() | changes), dropout=dropout)
    train_here(queue)
    return queue


def test_plain_torch_trains_as_it_always_has(plain: dict[int, Queue]) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert {str(rows): figures(history(queue)) for rows, queue in plain.items()} == {
        rows: pytest.approx(values, abs=1e-5) for rows, values in golden.items()
    }


def test_what_is_compared_is_clipped_and_has_steps_with_nothing_to_learn(plain: dict[int, Queue]) -> None:
    norms = [entry["gradient_norm"] for entry in history(plain[8])]
    assert len(norms) == SHORT.steps
    assert min(norms) > SHORT.clip_norm
    assert 0.0 in [entry["gradient_norm"] for entry in history(plain[1])]
    assert [None] in [list(entry["loss"].values())[1:] for entry in history(plain[1]) if entry["gradient_norm"]]


@pytest.mark.parametrize("case", FULL)
def test_deepspeed_trains_as_one_process_of_plain_torch_does(outcomes: Path, plain: dict[int, Queue], case: str) -> None:
    expected = plain[CASES[case].config.batch_rows]
    entries = json.loads((outcomes / case / "whole.json").read_text())
    assert figures(entries) == pytest.approx(figures(history(expected)), abs=1e-5)
    weights = load_file(expected.store.path(f"{expected.items[0].folder}/{MODEL}/model.safetensors"))
    exported = load_file(outcomes / case / "whole" / "model.safetensors")
    assert exported.keys() == weights.keys()
    assert all(torch.allclose(exported[name], weights[name], atol=1e-5) for name in weights)


def test_where_the_cut_is_the_same_so_is_dropout_on_any_number_of_workers(
    outcomes: Path, plain: dict[int, Queue], tmp_path: Path
) -> None:
    # Every sequence is a micro-batch of its own, on one worker as on two.
    alone = figures(history(trained_plainly(tmp_path, 8, DROPOUT, TOKENS["one"])))
    assert figures(json.loads((outcomes / "two-zero2-dropout" / "whole.json").read_text())) == pytest.approx(alone, abs=1e-5)
    assert alone[:3] != pytest.approx(figures(history(plain[8]))[:3], abs=1e-2)


@pytest.mark.parametrize("case", HALF)
def test_bfloat16_stays_near(outcomes: Path, plain: dict[int, Queue], case: str) -> None:
    entries = json.loads((outcomes / case / "whole.json").read_text())
    assert figures(entries) == pytest.approx(figures(history(plain[8])), rel=0.03)
    weights = load_file(outcomes / case / "whole" / "model.safetensors").values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_what_is_validated_at_stage_3_in_bfloat16_keeps_the_frequencies_of_rotary_positions() -> None:
    model = tiny.tiny_llama().model
    copy = whole_copy(model, "bfloat16")
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.bfloat16}
    frequencies = dict(model.named_buffers())
    assert frequencies
    assert all(torch.equal(mine, frequencies[name]) for name, mine in copy.named_buffers())
    assert {mine.dtype for _, mine in copy.named_buffers()} == {torch.float32}


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.resumes])
def test_a_checkpoint_goes_on_exactly(outcomes: Path, case: str) -> None:
    whole, resumed = [json.loads((outcomes / case / f"{name}.json").read_text()) for name in ("whole", "resumed")]
    assert resumed == whole
    first, second = [load_file(outcomes / case / name / "model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_was_compiled(outcomes: Path) -> None:
    assert not list(outcomes.glob("extensions/**/*.so"))


def renew(folder: Path) -> None:
    found = {str(rows): figures(history(trained_plainly(folder / str(rows), rows))) for rows in (1, 8)}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        renew(Path(scratch))
