"""Early stopping that resumes."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch.callbacks
from lightning.pytorch import LightningModule, Trainer

from typst_lit.errors import UserError

log = logging.getLogger(__name__)


class EarlyStopping(lightning.pytorch.callbacks.EarlyStopping):
    """Stops the run if ``monitor`` has not improved for ``patience`` validations.

    Without validation data it does nothing. It works with any module that logs ``monitor``. It differs from Lightning's
    in resuming: the ``patience`` given now applies, not that of the checkpoint, and a run that had stopped early stops
    again.

    Args:
        patience: validations without improvement.
        min_delta: smallest decrease that counts as an improvement.
        monitor: the logged value to watch; lower is better.

    Raises:
        UserError: when ``patience`` is negative.

    Example:
        >>> from typst_lit.callbacks import EarlyStopping
        >>> EarlyStopping(patience=5).mode
        'min'
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0, monitor: str = "val_loss") -> None:
        if patience < 0:
            raise UserError(f"must be 0 or more, not {patience}.", setting="early_stopping.patience")
        super().__init__(monitor=monitor, min_delta=min_delta, patience=patience, mode="min", strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The checkpoint saved last has the exhausted patience, but not that the run is over.
        trainer.should_stop = trainer.should_stop or self.wait_count >= max(1, self.patience)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopping_reason_message and trainer.is_global_zero:
            log.warning("Stopped early: %s (`early_stopping.patience`)", self.stopping_reason_message)
