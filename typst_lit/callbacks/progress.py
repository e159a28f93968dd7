"""Readable progress: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from typst_lit._compat.lightning import optimizer_stepped
from typst_lit.progress import LOG_INTERVAL_S


def progress_bar() -> ProgressBar:
    """Returns a progress bar if standard error is a terminal, else a `LineProgress`."""
    return TQDMProgressBar() if sys.stderr.isatty() else LineProgress()


class LineProgress(ProgressBar):
    """Prints a line every ``interval_s`` seconds, for log files and the captured output of notebooks.

    It works with any module; it shows ``train_loss``, ``tokens_per_s`` and ``val_loss`` if they are logged.

    Args:
        interval_s: minimum time between two lines; the first and the last step are always printed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from typst_lit.callbacks import LineProgress
        >>> trainer = Trainer(callbacks=[LineProgress(interval_s=60)], accelerator="cpu", logger=False)
    """

    def __init__(self, interval_s: float = LOG_INTERVAL_S) -> None:
        super().__init__()
        self.interval_s = interval_s
        self._printed_at = 0.0
        self._started_at = 0.0

    def disable(self) -> None:
        self.interval_s = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started_at = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not optimizer_stepped(trainer):
            return
        total = trainer.estimated_stepping_batches
        step = trainer.global_step
        if self._due() or step in (self._first_step + 1, total):
            values = trainer.callback_metrics
            shown = [f"{name} {float(values[name]):.4g}" for name in ("train_loss", "tokens_per_s") if name in values]
            if total != float("inf"):
                remaining_s = (time.monotonic() - self._started_at) / max(1, step - self._first_step) * (total - step)
                shown.append(f"about {_duration(remaining_s)} left")
            of_total = "" if total == float("inf") else f"/{total}"
            self._print(f"step {step}{of_total}, epoch {trainer.current_epoch + 1}", *shown)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        if not trainer.sanity_checking and "val_loss" in values:
            shown = [f"val_loss {float(values['val_loss']):.4f}"]
            if "val_perplexity" in values:
                shown.append(f"perplexity {float(values['val_perplexity']):.3f}")
            self._print(f"validation at step {trainer.global_step}", *shown)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._print_batch("validation", args[2], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._print_batch("test", args[2], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._print_batch("predict", args[2], trainer.num_predict_batches)

    def _print_batch(self, stage: str, index: int, totals: Any) -> None:
        if self._due():
            self._print(f"{stage}: batch {index + 1} of {sum(totals)}")

    def _due(self) -> bool:
        return time.monotonic() - self._printed_at >= self.interval_s

    def _print(self, *parts: str) -> None:
        if self.interval_s == float("inf"):
            return
        self._printed_at = time.monotonic()
        print(", ".join(parts), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
