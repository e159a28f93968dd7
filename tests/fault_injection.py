"""Callbacks that inject failures into a run; the command line names them by their dotted path."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback


class KillAtBatch(Callback):
    """Kills the process, as a power cut would, when a training batch ends.

    Args:
        batch: its number, counted over all epochs from 1.
        during_validation: wait for the next validation.
    """

    def __init__(self, batch: int, during_validation: bool = False) -> None:
        self.batch = batch
        self.during_validation = during_validation
        self.num_batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.num_batches += 1
        if self.num_batches >= self.batch and not self.during_validation:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, *args: Any) -> None:
        if self.num_batches >= self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class KillWhilePredicting(Callback):
    """Kills the process after some batches of prediction."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.batches:
            os.kill(os.getpid(), signal.SIGKILL)


class PoisonAtBatch(Callback):
    """Makes the model's output NaN from a training batch on, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            pl_module.model.get_output_embeddings().weight.data[0] = float("nan")


class OutOfMemory(Callback):
    """Raises what torch raises when a GPU is full."""

    def on_before_backward(self, *args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class RecordOrder(Callback):
    """Appends the origins of every training batch to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with open(self.path, "a") as stream:  # noqa: PTH123
            stream.write(" ".join(origin.split("record ")[1].split()[0] for origin in batch.origins) + "\n")


class RecordLosses(Callback):
    """Appends the losses of every optimizer step and validation to a file, in the first process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and trainer.global_step > self.step:
            self.step = trainer.global_step
            self._write(trainer, "train_loss")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._write(trainer, "val_loss")

    def _write(self, trainer: Any, name: str) -> None:
        with open(self.path, "a") as stream:  # noqa: PTH123
            stream.write(f"{trainer.global_step} {name} {float(trainer.callback_metrics[name])!r}\n")


class KillRank(Callback):
    """Kills one of several processes, as a power cut would, when a training batch ends.

    Args:
        rank: of the process.
        batch: number of the batch, from 1.
    """

    def __init__(self, rank: int, batch: int) -> None:
        self.rank = rank
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


class ShrinkMemory(Callback):
    """Limits the process, from its second batch on, to less memory than the first one took.

    Args:
        fraction: of what the first one took.
    """

    def __init__(self, fraction: float = 0.7) -> None:
        self.fraction = fraction
        self.peak = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.hook = pl_module.model.get_output_embeddings().register_forward_pre_hook(self._measure)

    def _measure(self, *_: Any) -> None:
        self.peak = max(self.peak, _address_space())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            now = _address_space()
            limit = now + int(self.fraction * (self.peak - now))
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


class SignalToWorkers(Callback):
    """Sends a signal to the processes that prepare batches, after the second batch.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, self.number)


class SpikeAtStep(Callback):
    """Multiplies the head's weight for one step, which makes the loss spike.

    Args:
        step: its number, from 0.
        factor: multiplies the weight.
    """

    def __init__(self, step: int, factor: float = 50.0) -> None:
        self.step = step
        self.factor = factor

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            pl_module.model.get_output_embeddings().weight.data *= self.factor

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step + 1:
            pl_module.model.get_output_embeddings().weight.data /= self.factor
