"""Resumable checkpoints: when one is made, and how a run stops without losing anything."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from typst_lit.callbacks.checkpoint_files import (
    AtomicCheckpointIO,
    copy_checkpoint,
    keep_newest,
    newest_intact,
    next_path,
    remove_stale,
)
from typst_lit.errors import RunStopped, UserError

log = logging.getLogger(__name__)
SAVE_NOW = "SAVE"  # a file of this name in the run directory asks for a checkpoint


class ResumableCheckpoint(Checkpoint):
    """Keeps checkpoints in the run directory: trainable weights, optimizer, counters, order of the data.

    One is made after every epoch (with its validation), every so many optimizer steps, when some minutes have passed,
    and when a file ``SAVE`` appears in the run directory; always when a step is complete, so that no gradient of a half
    accumulated step is lost.

    SIGTERM and Ctrl-C finish the step, save and stop; a second one stops at once. So does SIGUSR1 under SLURM, and puts
    the job into the queue again. A validation is not finished first: its documents may take longer than anyone waits,
    and the steps since the last checkpoint are made again.

    Args:
        every_n_steps: optimizer steps from one to the next within an epoch.
        every_minutes: save earlier where so many steps take longer than this.
        keep: how many of the newest to keep.
        copy_to: a second directory for the newest ones, on a disk that outlives the machine.
    """

    def __init__(
        self, every_n_steps: int = 20, every_minutes: float = 2.0, keep: int = 2, copy_to: str | None = None
    ) -> None:
        if every_n_steps < 1 or every_minutes <= 0 or keep < 1:
            raise UserError("adapter_checkpoint.every_n_steps and .keep must be 1 or more, and .every_minutes above 0.")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.copy_to = copy_to
        self.signals = Signals()
        self._saved_at = 0
        self._saved_time = 0.0
        self._after_validation = False

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        """Returns where the checkpoints of a trainer's run are."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            remove_stale(self.folder(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
        self.signals.catch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signals.release()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loader: Any = trainer.train_dataloader
        checkpoint["processes"] = trainer.world_size
        checkpoint["batches"] = loader.batch_sampler.num_batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Has the loops, which count the batches of one process, count those of as many processes as there are now."""
        before, now = checkpoint["processes"], trainer.world_size
        if trainer.state.fn != "fit" or before == now:
            return
        count: dict[str, int] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        done = min(count["ready"] * before, checkpoint["batches"])
        ready = -(-done // now) if done == checkpoint["batches"] else done // now
        count.update({name: ready - (count["ready"] - value) for name, value in count.items()})
        log.info("Saved by %d processes, and gone on with by %d.", before, now)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        new = trainer.global_step != self._saved_at
        asked = Path(trainer.default_root_dir) / SAVE_NOW
        wanted = time.monotonic() - self._saved_time >= 60 * self.every_minutes or asked.exists()
        wanted = wanted or trainer.global_step == trainer.max_steps  # the end, unless somebody goes on from here
        # Saving takes all processes, and neither their clocks nor their signals agree: they have to.
        wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        stop = trainer.strategy.reduce_boolean_decision(self.signals.received is not None, all=False)
        if not stop and not (new and (wanted or trainer.global_step % self.every_n_steps == 0)):
            return
        # Resumed between a step and its validation, a run would leave the validation out: save after it instead.
        fit_loop = trainer.fit_loop
        if fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._after_validation = True
        elif not fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_maybe_stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.at_once = lambda: self._stop(trainer, saved=False)
        if self.signals.received is not None:
            self.signals.at_once()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._after_validation and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_maybe_stop(trainer)
        self._after_validation = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # and not cut short: the rest may still be made
            self._save_and_maybe_stop(trainer)

    def _save_and_maybe_stop(self, trainer: Trainer) -> None:
        self._save_checkpoint(trainer)
        if trainer.strategy.reduce_boolean_decision(self.signals.received is not None, all=False):
            self._stop(trainer, saved=True)

    def _save_checkpoint(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
        folder = self.folder(trainer)
        path = trainer.strategy.broadcast(next_path(folder, trainer.global_step))
        trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        keep_newest(folder, self.keep)
        asked = Path(trainer.default_root_dir) / SAVE_NOW
        if asked.exists():
            asked.unlink()
            log.info("Saved as %s asks: %s", SAVE_NOW, path)
        if self.copy_to:
            try:
                copy_checkpoint(path, Path(self.copy_to), self.keep)
            except OSError as error:  # the run is worth more than its copy
                log.warning("The checkpoint was not copied to %s: %s", self.copy_to, error)

    def _stop(self, trainer: Trainer, saved: bool) -> None:
        received = self.signals.received or signal.SIGTERM  # another process's
        where = f"after step {trainer.global_step}"
        last, _ = newest_intact(self.folder(trainer))
        if saved:
            where += f", which is saved in {self.folder(trainer)}"
        else:
            where += f", within a validation; the last checkpoint is {last or 'still to come'}"
        if received == REQUEUE:
            done = _requeue() if trainer.is_global_zero else "the job is queued again"
            raise RunStopped(f"Stopped by SLURM's {received.name} {where}; {done}.", 0, last is not None)
        raise RunStopped(f"Stopped by {received.name} {where}.", 128 + received, last is not None)


REQUEUE = getattr(signal, "SIGUSR1", None)  # Windows has none


class Signals:
    """Takes note of the signals that ask a run to stop, instead of stopping at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once: Callable[[], object] | None = None  # what to do where nothing has to be finished first
        self._before: dict[signal.Signals, Any] = {}
        self._process = 0

    def catch(self) -> None:
        """Begins to take note; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._process = os.getpid()
        caught = [signal.SIGTERM, signal.SIGINT]
        if REQUEUE is not None and "SLURM_JOB_ID" in os.environ:
            caught.append(REQUEUE)
        for number in caught:
            self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Gives the signals back to those who had them."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that was forked off, which shall just end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is not None and number != REQUEUE:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if self.at_once is not None:
            self.at_once()
        log.warning("%s: the step is finished and saved first. Once more stops at once.", self.received.name)


def _requeue() -> str:
    """Puts this SLURM job into the queue again and says so."""
    environment = os.environ
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} could not be queued again ({error})"
    return f"job {job} is queued again" if done.returncode == 0 else f"scontrol said: {done.stderr.strip()}"
