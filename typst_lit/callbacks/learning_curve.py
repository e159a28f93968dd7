"""What the curve of a run says, in plain language."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

log = logging.getLogger(__name__)
STILL_FALLING = 0.01  # a change of more than this share of the loss counts


class EarlyStoppingOnPlateau(EarlyStopping):
    """Stops when val_loss has not improved for some validations. Without validation data it does nothing.

    Args:
        patience: validations without improvement to wait for.
        min_delta: what counts as an improvement.
        monitor: the logged value to watch; lower is better.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0, monitor: str = "val_loss") -> None:
        super().__init__(monitor=monitor, min_delta=min_delta, patience=patience, mode="min", strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience  # the command line's
        super().load_state_dict(state_dict)
        self.patience = patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint that is made at the very end remembers the patience that ran out, but not that the run is over.
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopping_reason_message and trainer.is_global_zero:
            log.warning("Stopped early: %s (--early_stopping.patience)", self.stopping_reason_message)

    def _validate_condition_metric(self, logs: dict[str, Any]) -> bool:
        return self.monitor in logs and super()._validate_condition_metric(logs)


class LearningCurve(Callback):
    """Keeps the curve of a run, shows the settings in TensorBoard beside it, and says at the end what to do next."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}
        self.points: list[tuple[float, float, float | None]] = []  # epochs done, val_loss, mean train_loss since
        self._train: list[float] = []
        self._settings_logged = False
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = [tuple(point) for point in state_dict["points"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and trainer.is_global_zero:
            log.info("Resuming after step %d, in epoch %d.", trainer.global_step, trainer.current_epoch + 1)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._trained = True
        if not trainer.fit_loop._should_accumulate() and "train_loss" in trainer.callback_metrics:
            self._train.append(float(trainer.callback_metrics["train_loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get("val_loss")
        if trainer.sanity_checking or trainer.state.fn != "fit" or value is None:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.ready / max(1, trainer.num_training_batches)
        train = sum(self._train) / len(self._train) if self._train else None
        self.points.append((trainer.current_epoch + progress, float(value), train))
        self._train.clear()
        if trainer.is_global_zero and not self._settings_logged and self.settings:
            self._settings_logged = True
            self._log_settings(trainer.logger)

    def _log_settings(self, logger: Any) -> None:
        if not isinstance(logger, TensorBoardLogger):
            if logger is not None:
                logger.log_hyperparams(self.settings)
            return
        # TensorBoard's table of runs, with val_loss as the result of each. The logger's own method would write the
        # value into the curve a second time.
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self.settings.items()}
        for summary in hparams(plain, {"val_loss": 0.0}):
            logger.experiment.file_writer.add_summary(summary)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._trained and trainer.is_global_zero:
            log.warning("There was nothing left to train: raise --trainer.max_epochs (or --trainer.max_steps).")
        elif trainer.is_global_zero and self.points:
            log.info("%s", reading(self.points))


def reading(points: list[tuple[float, float, float | None]]) -> str:
    """Returns the curve and what it means.

    Args:
        points: epochs done, val_loss and mean train_loss before it, of each validation in order.
    """
    rows = [
        f"  {epoch:>6.2f}{value:>12.4f}{'' if train is None else f'{train:>12.4f}'}" for epoch, value, train in points
    ]
    table = "\n".join(["Learning curve", f"  {'epoch':>6}{'val_loss':>12}{'train_loss':>12}", *rows])
    if len(points) < 2:
        return f"{table}\nOne validation is no curve yet: train for more epochs to see where it goes."
    values = [value for _, value, _ in points]
    best = min(range(len(values)), key=values.__getitem__)
    if values[-1] > values[best] * (1 + STILL_FALLING):
        epoch = points[best][0]
        rise = values[-1] - values[best]
        return (
            f"{table}\nval_loss has risen by {rise:.4f} since epoch {epoch:.2f}: from there on the model overfits. "
            f"adapter/best is from then. Stop there (--trainer.max_epochs {max(1, round(epoch))}), add data, or raise "
            "dropout or weight decay."
        )
    if len(points) < 3 and values[-1] > values[0] * (1 - STILL_FALLING):
        return f"{table}\nTwo values so near each other tell little: train longer, or raise the learning rate."
    fall = (values[-2] - values[-1]) / abs(values[-2]) if values[-2] else 0.0
    if fall > STILL_FALLING:
        return (
            f"{table}\nval_loss is still falling ({fall:.1%} in the last stretch): more epochs would help "
            f"(--trainer.max_epochs {max(2, round(points[-1][0] * 2))} --ckpt_path last)."
        )
    return f"{table}\nval_loss has levelled off: more epochs would bring little. More data or a higher rank might."
