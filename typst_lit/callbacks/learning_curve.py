"""The learning curve of a run, and what it says, in plain language."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from typst_lit._compat.lightning import optimizer_stepped

log = logging.getLogger(__name__)
MIN_RELATIVE_CHANGE = 0.01  # smaller changes of the loss count as none

Point = tuple[float, float, float | None]  # epochs done, val_loss, mean train_loss since the point before


class LearningCurve(Callback):
    """Records ``val_loss`` and ``train_loss`` at each validation, and logs at the end what the curve says (`diagnose`).

    It works with any module that logs these two values.

    Args:
        settings: the run's settings, flat, for TensorBoard's table of runs.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from typst_lit.callbacks import LearningCurve
        >>> trainer = Trainer(callbacks=[LearningCurve({"learning_rate": 2e-4})], accelerator="cpu", logger=False)
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}
        self.points: list[Point] = []
        self._train_losses: list[float] = []
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
        if optimizer_stepped(trainer) and "train_loss" in trainer.callback_metrics:
            self._train_losses.append(float(trainer.callback_metrics["train_loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get("val_loss")
        if trainer.sanity_checking or trainer.state.fn != "fit" or value is None:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.ready / max(1, trainer.num_training_batches)
        train_loss = sum(self._train_losses) / len(self._train_losses) if self._train_losses else None
        self.points.append((trainer.current_epoch + progress, float(value), train_loss))
        self._train_losses.clear()
        if trainer.is_global_zero and not self._settings_logged and self.settings:
            self._settings_logged = True
            self._log_settings(trainer.logger)

    def _log_settings(self, logger: Any) -> None:
        if not isinstance(logger, TensorBoardLogger):
            if logger is not None:
                logger.log_hyperparams(self.settings)
            return
        # TensorBoard's table of runs, with val_loss as the metric of each. The logger's own method would add the value
        # to the curve a second time.
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self.settings.items()}
        for summary in hparams(plain, {"val_loss": 0.0}):
            logger.experiment.file_writer.add_summary(summary)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._trained and trainer.is_global_zero:
            log.warning("Nothing was left to train: raise `trainer.max_epochs` (or `trainer.max_steps`).")
        elif trainer.is_global_zero and self.points:
            log.info("%s", diagnose(self.points))


def diagnose(points: Sequence[Point]) -> str:
    """Returns a learning curve as a table, and what it says: not finite, overfitting, still falling, or leveled off.

    Args:
        points: epochs done, val_loss, and mean train_loss since the point before, of each validation in order.

    Example:
        >>> from typst_lit.callbacks import diagnose
        >>> print(diagnose([(1.0, 2.0, 2.5), (2.0, 1.001, 1.2), (3.0, 1.0, 1.1)]))
        Learning curve
           epoch    val_loss  train_loss
            1.00      2.0000      2.5000
            2.00      1.0010      1.2000
            3.00      1.0000      1.1000
        val_loss has leveled off: more epochs would gain little. More data or a higher rank might help.
    """
    rows = [
        f"  {epoch:>6.2f}{value:>12.4f}{'' if train is None else f'{train:>12.4f}'}" for epoch, value, train in points
    ]
    table = "\n".join(["Learning curve", f"  {'epoch':>6}{'val_loss':>12}{'train_loss':>12}", *rows])
    return f"{table}\n{_conclusion(points)}"


def _conclusion(points: Sequence[Point]) -> str:
    diverged = next((index for index, (_, value, _) in enumerate(points) if not math.isfinite(value)), None)
    if diverged is not None:
        return _diverged(points, diverged)
    if len(points) < 2:
        return "One validation does not show a trend: train for more epochs."
    values = [value for _, value, _ in points]
    best = min(range(len(values)), key=values.__getitem__)
    if values[-1] > values[best] * (1 + MIN_RELATIVE_CHANGE):
        epoch = points[best][0]
        return (
            f"val_loss has risen by {values[-1] - values[best]:.4f} since epoch {epoch:.2f}: from there on the model "
            f"overfits. adapter/best is from then. Stop there (`trainer.max_epochs={max(1, round(epoch))}`), add data, "
            "or raise dropout or weight decay."
        )
    if len(points) < 3 and values[-1] > values[0] * (1 - MIN_RELATIVE_CHANGE):
        return "Two values this close do not show a trend: train longer, or raise the learning rate."
    fall = (values[-2] - values[-1]) / abs(values[-2]) if values[-2] else 0.0
    if fall > MIN_RELATIVE_CHANGE:
        return (
            f"val_loss is still falling ({fall:.1%} since the validation before): train for more epochs "
            f"(`trainer.max_epochs={max(2, round(points[-1][0] * 2))}` `ckpt_path=last`)."
        )
    return "val_loss has leveled off: more epochs would gain little. More data or a higher rank might help."


def _diverged(points: Sequence[Point], first: int) -> str:
    epoch, value, _ = points[first]
    finite = [point for point in points if math.isfinite(point[1])]
    if finite:
        best_epoch, best_value, _ = min(finite, key=lambda point: point[1])
        saved = f"adapter/best is from epoch {best_epoch:.2f} (val_loss {best_value:.4f})"
    else:
        saved = "no usable adapter was saved"
    return (
        f"val_loss is not finite ({value}) at epoch {epoch:.2f}: the weights have diverged; {saved}. Train again with "
        "a lower `model.learning_rate` or more `model.warmup_steps`."
    )
