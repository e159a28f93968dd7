"""Training speed, in tokens per second."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit._compat.lightning import optimizer_stepped


class Throughput(Callback):
    """Logs ``tokens_per_s`` at each optimizer step: tokens per second of all processes, without padding.

    Time spent in validation does not count. Batches must have ``lengths``, the tokens of each sample, as those of
    `TypstDataModule`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from typst_lit.callbacks import Throughput
        >>> trainer = Trainer(callbacks=[Throughput()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._started = 0.0

    def on_train_start(self, *args: Any) -> None:
        self.on_train_epoch_start()  # which is not called when a run resumes within an epoch

    def on_train_epoch_start(self, *args: Any) -> None:
        self._tokens, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_validation_start(self, *args: Any) -> None:
        self._seconds += time.perf_counter() - self._started

    def on_validation_end(self, *args: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += sum(batch.lengths)
        if not optimizer_stepped(trainer):
            return
        now = time.perf_counter()
        seconds = self._seconds + now - self._started
        pl_module.log("tokens_per_s", self._tokens * trainer.world_size / seconds, prog_bar=True)
        self._tokens, self._seconds, self._started = 0, 0.0, now
