"""Progress that can be read: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

SECONDS_BETWEEN_LINES = 10.0


def progress_bar() -> ProgressBar:
    """Returns the progress bar that suits standard error."""
    return TQDMProgressBar() if sys.stderr.isatty() else LineProgress()


class LineProgress(ProgressBar):
    """Prints one line now and then, for logs and notebooks' captured output.

    Args:
        interval_s: least time between two lines; first and last steps are always printed.
    """

    def __init__(self, interval_s: float = SECONDS_BETWEEN_LINES) -> None:
        super().__init__()
        self.interval_s = interval_s
        self._printed_at = 0.0
        self._started = 0.0

    def disable(self) -> None:
        self.interval_s = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        total = trainer.estimated_stepping_batches
        step = trainer.global_step
        if self._due() or step in (self._first_step + 1, total):
            values = trainer.callback_metrics
            shown = [f"{name} {float(values[name]):.4g}" for name in ("train_loss", "tokens_per_s") if name in values]
            if total != float("inf"):
                left = (time.monotonic() - self._started) / max(1, step - self._first_step) * (total - step)
                shown.append(f"about {_clock(left)} left")
            of_all = "" if total == float("inf") else f"/{total}"
            self._line(f"step {step}{of_all}, epoch {trainer.current_epoch + 1}", *shown)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        if not trainer.sanity_checking and "val_loss" in values:
            shown = f"val_loss {float(values['val_loss']):.4f}, perplexity {float(values['val_perplexity']):.3f}"
            self._line(f"validation at step {trainer.global_step}", shown)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._batches("validation", args[2], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._batches("test", args[2], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        self._batches("predict", args[2], trainer.num_predict_batches)

    def _batches(self, what: str, index: int, totals: Any) -> None:
        if self._due():
            self._line(f"{what}: batch {index + 1} of {sum(totals)}")

    def _due(self) -> bool:
        return time.monotonic() - self._printed_at >= self.interval_s

    def _line(self, *parts: str) -> None:
        if self.interval_s == float("inf"):
            return
        self._printed_at = time.monotonic()
        print(", ".join(parts), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
