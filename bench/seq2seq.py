"""The usual way to train the baseline: Hugging Face's `Seq2SeqTrainer` with the recipe of Distilling step-by-step.

Hsieh et al. (arXiv 2305.02301): every step takes a batch of rows once behind `predict:` and once behind `explain:`, each
padded to its longest, and the loss is alpha times the label's plus (1 - alpha) times the rationale's.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from kd.loading import set_threads
from kd.models import Loaded
from kd.rows import Features

TASKS = ("predict", "explain")


class TwoPasses(Seq2SeqTrainer):  # type: ignore[misc]
    """Runs the model once per task. `losses` are those of all steps."""

    alpha = 0.5

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        label, rationale = (model(**inputs[task]).loss for task in TASKS)
        return self.alpha * label + (1 - self.alpha) * rationale


@dataclass
class Collator:
    """Rows to one padded batch per task."""

    pad: DataCollatorForSeq2Seq

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {task: self.pad([row[task] for row in rows]) for task in TASKS}


@dataclass
class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended, and its loss."""

    ended_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended_s.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:  # noqa: ARG002
        self.losses += [logs["loss"]] if "loss" in logs else []


def train(loaded: Loaded, rows: Sequence[Features], batch_rows: int, steps: int, folder: Path, threads: int) -> Clock:
    """So many steps over the rows in their order."""
    clock = Clock()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_rows,
        max_steps=steps,
        learning_rate=5e-5,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    with set_threads(threads):
        trainer = TwoPasses(
            model=loaded.model.train(),
            args=arguments,
            train_dataset=[two_sides(row) for row in rows],
            data_collator=Collator(DataCollatorForSeq2Seq(loaded.tokenizer, loaded.model)),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock


def two_sides(row: Features) -> dict[str, Any]:
    """A row's two sequences by task."""
    sides = zip(TASKS, row.input_ids, row.target_ids, strict=True)
    return {task: {"input_ids": inputs, "labels": targets} for task, inputs, targets in sides}
