"""Resumable checkpoints: small, complete, and never half written."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from typst_lit.errors import UserError

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same directory, flushes it to the disk, and renames it.

    Whatever happens meanwhile, the name holds the old checkpoint or the new one. Only plain data is ever loaded.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            Path(scratch).replace(path)
            sync_directory(path.parent)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            kept = "the last one before it is whole" if path.exists() else "there is none yet"
            raise UserError(
                f"the checkpoint {path} could not be written ({error}); {kept}. Free some space."
            ) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(scratch).unlink()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location=map_location or _to_cpu, weights_only=True)
        except Exception as error:
            raise UserError(f"{path}: is not a checkpoint of this trainer: {str(error).splitlines()[0]}") from error


def _to_cpu(storage: Any, location: str) -> Any:
    return storage


def sync_directory(path: Path) -> None:
    """Flushes a directory, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ResumableCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` in the run directory: trainable weights, optimizer, counters, order of the data.

    It is written after every epoch (with its validation), every so many optimizer steps, and when some minutes have
    passed, always when a step is complete: no gradient of a half accumulated step is lost.

    Args:
        every_n_steps: optimizer steps from one to the next within an epoch.
        every_minutes: save earlier where so many steps take longer than this.
    """

    def __init__(self, every_n_steps: int = 20, every_minutes: float = 2.0) -> None:
        if every_n_steps < 1 or every_minutes <= 0:
            raise UserError("checkpoint.every_n_steps must be 1 or more, and checkpoint.every_minutes above 0.")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._saved_at = 0
        self._saved_time = 0.0
        self._after_validation = False

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Returns where the checkpoint of a trainer's run lies."""
        return Path(trainer.default_root_dir) / "checkpoints" / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            for stale in self.path(trainer).parent.glob(f".{LAST}-*"):  # a save that was killed
                stale.unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self._saved_at or trainer.fit_loop._should_accumulate():
            return
        long_ago = time.monotonic() - self._saved_time >= 60 * self.every_minutes
        # Saving takes all processes, and their clocks differ: they have to agree.
        due = trainer.strategy.reduce_boolean_decision(long_ago, all=False)
        if not due and trainer.global_step % self.every_n_steps != 0:
            return
        # Resumed between a step and its validation, a run would leave the validation out: save after it instead.
        fit_loop = trainer.fit_loop
        if fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._after_validation = True
        elif not fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._after_validation and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)
        self._after_validation = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
        trainer.save_checkpoint(self.path(trainer))
