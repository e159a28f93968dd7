"""Callbacks that do to a run what the world does, named on the command line by their dotted path."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback


class KillAtBatch(Callback):
    """Kills the process, as a power cut would, when a training batch of the run is done.

    Args:
        batch: which one, counted over all epochs from 1.
        during_validation: wait for the next validation instead.
    """

    def __init__(self, batch: int, during_validation: bool = False) -> None:
        self.batch = batch
        self.during_validation = during_validation
        self.seen = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen += 1
        if self.seen >= self.batch and not self.during_validation:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, *args: Any) -> None:
        if self.seen >= self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class KillWhilePredicting(Callback):
    """Kills the process after some batches of prediction."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batches:
            os.kill(os.getpid(), signal.SIGKILL)


class PoisonAtBatch(Callback):
    """Makes the model's output NaN from one training batch on, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            pl_module.model.get_output_embeddings().weight.data[0] = float("nan")


class OutOfMemory(Callback):
    """Raises what torch raises when a GPU is full."""

    def on_before_backward(self, *args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class SeeOrder(Callback):
    """Appends the origins of every training batch to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with open(self.path, "a") as stream:  # noqa: PTH123
            stream.write(" ".join(origin.split("record ")[1].split()[0] for origin in batch.origins) + "\n")
