"""Signals: a run that is asked to stop finishes its step, saves and stops."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from typst_lit._compat.lightning import optimizer_stepped, validation_due
from typst_lit.callbacks.checkpoint_files import checkpoint_directory, newest_intact
from typst_lit.callbacks.resumable_checkpoint import ResumableCheckpoint
from typst_lit.errors import RunStopped

log = logging.getLogger(__name__)
REQUEUE_SIGNAL = getattr(signal, "SIGUSR1", None)  # Windows has none


class GracefulShutdown(Checkpoint):
    """On SIGTERM and Ctrl-C, finishes the step, saves a checkpoint and stops the run.

    A second signal stops immediately. Under SLURM, SIGUSR1 saves and stops, too, and requeues the job. A validation is
    not finished first: generating its documents may take longer than the sender waits. The steps since the last
    checkpoint are then repeated by the resumed run.

    Lightning's own signal connector is not used because it saves inside the signal handler, in the middle of a step,
    where the gradient accumulated so far is lost.

    It saves through the trainer's `ResumableCheckpoint`; without one, it stops without saving. It is a ``Checkpoint``
    because Lightning runs those after all other callbacks: what they do at the end of a step is saved too.

    Raises:
        RunStopped: when the run stops, from a hook or, during a validation, from the signal handler.

    Example:
        >>> from typst_lit.callbacks import GracefulShutdown, ResumableCheckpoint
        >>> callbacks = [ResumableCheckpoint(), GracefulShutdown()]  # of a Trainer
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._validating: Trainer | None = None  # set while a signal stops the run immediately
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._pid = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows signal handlers in the main thread only
        self._pid = os.getpid()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if REQUEUE_SIGNAL is not None and "SLURM_JOB_ID" in os.environ:
            numbers.append(REQUEUE_SIGNAL)
        for number in numbers:
            self._previous_handlers[number] = signal.signal(number, self._handle)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:  # a forked worker process, which should simply end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._received is not None and number != REQUEUE_SIGNAL:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if self._validating is not None:
            self._stop_validation(self._validating)
        again = "Press Ctrl-C again" if number == signal.SIGINT else "Send it again"
        log.warning("%s: finishing the step and saving. %s to stop immediately.", self._received.name, again)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not optimizer_stepped(trainer):
            return
        # Processes may receive signals at different steps, or only one of them does: they have to agree.
        stopping = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if stopping and not last_batch and not validation_due(trainer):
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stopping = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        if stopping and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = trainer
        if self._received is not None:
            self._stop_validation(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = None  # the last step before callbacks write files, which must be complete

    def _save_and_stop(self, trainer: Trainer) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ResumableCheckpoint)]
        for checkpoint in checkpoints:
            checkpoint.save(trainer)
        directory = checkpoint_directory(trainer.default_root_dir)
        self._stop(trainer, f", which is saved in {directory}" if checkpoints else "; there is no ResumableCheckpoint")

    def _stop_validation(self, trainer: Trainer) -> None:
        newest, _ = newest_intact(checkpoint_directory(trainer.default_root_dir))
        checkpoint = f"the last checkpoint is {newest}" if newest else "no checkpoint has been saved yet"
        self._stop(trainer, f", during a validation; {checkpoint}")

    def _stop(self, trainer: Trainer, state: str) -> None:
        received = self._received or signal.SIGTERM  # sent to another process
        newest, _ = newest_intact(checkpoint_directory(trainer.default_root_dir))
        message, status = f"Stopped by {received.name} after step {trainer.global_step}{state}", 128 + received
        if received == REQUEUE_SIGNAL:
            message += f"; {_requeue() if trainer.is_global_zero else 'the job is requeued'}"
            status = 0
        raise RunStopped(f"{message}.", status, resumable=newest is not None)


def _requeue() -> str:
    """Requeues this SLURM job and returns what came of it."""
    environment = os.environ
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        process = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} could not be requeued ({error})"
    return f"job {job} is requeued" if process.returncode == 0 else f"scontrol failed: {process.stderr.strip()}"
