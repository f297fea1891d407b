"""What the engine is compared with: the floor that no engine goes below, Captum row by row, and inseq.

Each loads its model once; a run is timed from outside or, for inseq in its own process, by that process, and never has the
load in it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from captum.attr import Saliency
from torch import Tensor

from kd.batching import cut
from kd.families.base import Family
from kd.rows import Example


def text_of(row: Example) -> str:
    """What the model reads of a row."""
    return "".join(part.text for part in row.segments)


class Floor:
    """Forward and backward of batches that are tokenised, sorted and padded beforehand, and nothing else."""

    def __init__(self, family: Family, rows: Sequence[Example], budget: int) -> None:
        encoded = [family.encode(row.segments) for row in rows]
        answers = [family.encode_answer(row.target or "") for row in rows]
        sizes = [family.size(one, [answer]) for one, answer in zip(encoded, answers, strict=True)]
        self.model = family.model.requires_grad_(False)
        self.rows = len(rows)
        self.batches = []
        for places in cut(sizes, budget):
            ids, mask = family.batch([encoded[place].ids for place in places])
            targets, wanted = family.batch([answers[place] for place in places])
            start = torch.full_like(targets[:, :1], self.model.config.decoder_start_token_id)
            shifted = torch.cat([start, targets[:, :-1]], 1)
            self.batches.append((family.embed(ids), mask, shifted, targets, wanted.bool()))

    def run(self) -> float:
        """All rows once."""
        for embeds, mask, shifted, targets, wanted in self.batches:
            given = embeds.requires_grad_()
            logits = self.model(inputs_embeds=given, attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[wanted], targets[wanted], reduction="sum")
            torch.autograd.grad(loss, given)
        return self.rows


class CaptumRows:
    """Row by row, as Captum's documentation shows it, with the model as `from_pretrained` gives it."""

    def __init__(self, folder: Path, rows: Sequence[Example]) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.rows = rows

    def run(self) -> float:
        """All rows once."""
        saliency = Saliency(self._forward)
        for row in self.rows:
            ids = self.tokenizer(text_of(row), return_tensors="pt").input_ids
            labels = self.tokenizer(text_target=row.target, return_tensors="pt").input_ids
            embeds = self.model.get_input_embeddings()(ids).detach().requires_grad_()
            saliency.attribute(embeds, additional_forward_args=(labels,)).sum(-1)
        return len(self.rows)

    def _forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        logprobs: Tensor = self.model(inputs_embeds=embeds, labels=labels).logits.log_softmax(-1)
        return logprobs.gather(2, labels.unsqueeze(2)).sum((1, 2))


class Inseq:
    """inseq in an environment of its own, where there is one: a process that has loaded the model and waits to be asked.

    See `bench/inseq_rate.py`; what that says beside its answers goes to stderr. Once it has failed it has no rates any more.
    `versions` are those of the libraries in its environment, as far as it has started.
    """

    MODES = ("as it comes", "one text a call, its defaults", "batch_size=8")

    def __init__(self, python: Path | None, folder: Path, rows: Sequence[Example]) -> None:
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        if python is None:
            return
        texts = folder.parent / "texts.json"
        texts.write_text(json.dumps([[text_of(row) for row in rows], [row.target for row in rows]]), encoding="utf-8")
        script = Path(__file__).parent / "inseq_rate.py"
        command = [str(part) for part in (python, script, folder, texts, torch.get_num_threads())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        if self._process:
            started = self._answer()
            if started is None:
                print("note: inseq did not start; see above", file=sys.stderr)
            else:
                self.versions = json.loads(started)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def rate(self, mode: str) -> float | None:
        """Rows per second in one of the modes; None where there is no inseq, or it has failed."""
        if self._process is None or self._process.poll() is not None:
            return None
        assert self._process.stdin is not None
        try:
            print(mode, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        answer = self._answer()
        return None if answer is None else float(answer)

    def _answer(self) -> str | None:
        """The next line that it says; None where it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() or None
