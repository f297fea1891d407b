"""Objectives that do something else besides teaching, in the worker that trains with them."""

import gc
import os
import time
from pathlib import Path

import torch
from torch import distributed

from kd.training.objectives import LabelOnly, Term


class Diverges(LabelOnly):
    """The loss is no number."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("label", float("nan")),)


class Raises(LabelOnly):
    """One rank alone cannot open the run."""

    @property
    def terms(self) -> tuple[Term, ...]:
        if distributed.get_rank() == distributed.get_world_size() - 1:
            raise ZeroDivisionError("a defect of one rank")
        return super().terms


class Dies(LabelOnly):
    """The process of the last rank dies."""

    @property
    def terms(self) -> tuple[Term, ...]:
        if distributed.get_rank() == distributed.get_world_size() - 1:
            os._exit(9)
        return super().terms


class TooLarge(LabelOnly):
    """The device has too little memory for a step, as torch says it."""

    @property
    def terms(self) -> tuple[Term, ...]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Sleeps(LabelOnly):
    """The last rank sleeps for ever in its fourth step."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return (SleepyTerm("label", 1.0),)


class SleepyTerm(Term):
    """A term whose weight, which each step asks for, is never had a fourth time on the last rank."""

    asked = 0

    def __getattribute__(self, name: str) -> object:
        if name == "weight":
            SleepyTerm.asked += 1
            if SleepyTerm.asked > 3 and distributed.get_rank() == distributed.get_world_size() - 1:
                time.sleep(3600)
        return super().__getattribute__(name)


class Counts(LabelOnly):
    """Writes down how many tensors live in the first rank whenever a run is opened: then alone the prefix is asked for."""

    folder: str

    @property
    def answer_prefix(self) -> str:
        if distributed.get_rank() == 0:
            gc.unfreeze()  # so that nothing hides there
            gc.collect()
            living = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
            with (Path(self.folder) / f"{os.getpid()}.txt").open("a") as stream:
                stream.write(f"{living}\n")
        return super().answer_prefix
