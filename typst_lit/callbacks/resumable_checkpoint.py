"""Resumable checkpoints: when a run saves one, and how its counters fit another number of processes."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from typst_lit._compat.lightning import optimizer_stepped, validation_due
from typst_lit.callbacks.checkpoint_files import (
    RUN_ID,
    AtomicCheckpointIO,
    check_copies,
    checkpoint_directory,
    copy_checkpoint,
    keep_newest,
    next_path,
)
from typst_lit.errors import UserError
from typst_lit.files import remove_stale

log = logging.getLogger(__name__)
SAVE_REQUEST = "SAVE"  # a file of this name in the run directory requests a checkpoint


class ResumableCheckpoint(Checkpoint):
    """Saves checkpoints from which a run resumes bit for bit.

    A checkpoint has the trainable weights, the optimizer, the counters and the order of the data. One is saved after
    every epoch (with its validation), every ``every_n_steps`` optimizer steps, every ``every_minutes`` minutes, and
    when a file ``SAVE`` appears in the run directory; always after a complete step, so that no gradient of a
    half-accumulated step is lost. A checkpoint saved on one number of processes resumes on another.

    Lightning runs checkpoint callbacks after all others, so the state that is saved is that of the finished step.
    It needs a train dataloader whose batch sampler has ``num_batches``, as that of `TypstDataModule`.

    Args:
        every_n_steps: optimizer steps between two checkpoints within an epoch.
        every_minutes: save earlier if ``every_n_steps`` steps take longer than this.
        keep: number of checkpoints to keep, the newest.
        copy_to: a second directory for the newest checkpoints, on a disk that outlives the machine (Colab: Drive); one
            per run.

    Raises:
        UserError: if an argument is out of range.

    Example:
        >>> from typst_lit.callbacks import ResumableCheckpoint
        >>> ResumableCheckpoint(every_n_steps=50, keep=3).keep
        3
    """

    def __init__(
        self, every_n_steps: int = 20, every_minutes: float = 2.0, keep: int = 2, copy_to: str | None = None
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise UserError(f"must be 1 or more, not {value}.", setting=f"checkpoint.{name}")
        if not every_minutes > 0:
            raise UserError(f"must be above 0, not {every_minutes}.", setting="checkpoint.every_minutes")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.copy_to = copy_to
        self._run_id = secrets.token_hex(8)  # a resumed run has that of its checkpoint
        self._saved_step: int | None = None
        self._saved_at = 0.0
        self._save_after_validation = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            remove_stale(checkpoint_directory(trainer.default_root_dir))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.copy_to and trainer.is_global_zero:
            check_copies(Path(self.copy_to), self._run_id)
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loader: Any = trainer.train_dataloader
        checkpoint["world_size"] = trainer.world_size
        checkpoint["num_batches"] = loader.batch_sampler.num_batches
        checkpoint[RUN_ID] = self._run_id

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Converts the loops' counters, which count the batches of one process, to the present number of processes."""
        self._run_id = checkpoint.get(RUN_ID) or self._run_id
        saved, present = checkpoint["world_size"], trainer.world_size
        if trainer.state.fn != "fit" or saved == present:
            return
        counts: dict[str, int] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        total = checkpoint["num_batches"]
        done = min(counts["ready"] * saved, total)
        ready = -(-done // present) if done == total else done // present
        counts.update({name: ready - (counts["ready"] - count) for name, count in counts.items()})
        processes = "1 process" if saved == 1 else f"{saved} processes"
        log.info("The checkpoint was saved by %s; resuming on %d.", processes, present)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not optimizer_stepped(trainer):
            return
        due = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        due = due or (Path(trainer.default_root_dir) / SAVE_REQUEST).is_file()
        due = due or trainer.global_step == trainer.max_steps  # the last step, unless the run is resumed with more
        # All processes save together, and their clocks and file systems may differ: they have to agree.
        due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if trainer.global_step == self._saved_step or not (due or trainer.global_step % self.every_n_steps == 0):
            return
        # A run resumed between a step and its validation would skip the validation: save after it.
        if validation_due(trainer):
            self._save_after_validation = True
        elif not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._save_after_validation and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)
        self._save_after_validation = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # else `max_steps` ended it, and it may be resumed
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves a checkpoint of the step that just ended, unless there is one. All processes must call it."""
        if trainer.fast_dev_run or trainer.global_step == self._saved_step:  # type: ignore[attr-defined]
            return
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        directory = checkpoint_directory(trainer.default_root_dir)
        path = trainer.strategy.broadcast(next_path(directory, trainer.global_step))
        trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        keep_newest(directory, self.keep)
        request = Path(trainer.default_root_dir) / SAVE_REQUEST
        if request.is_file():
            request.unlink()
            log.info("Saved %s, as the file %s requested.", path, SAVE_REQUEST)
        if self.copy_to:
            try:
                copy_checkpoint(path, Path(self.copy_to), self.keep, self._run_id)
            except (OSError, UserError) as error:  # the run is worth more than its copy
                log.warning("The checkpoint was not copied to %s: %s", self.copy_to, error)
