"""Warm-up: the learning rate rises from near 0 over the first steps."""

from __future__ import annotations

import logging
import math

from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit.errors import UserError

log = logging.getLogger(__name__)


class Warmup(Callback):
    """Sets how many optimizer steps the module's schedule warms up.

    Args:
        steps: number of steps.
        ratio: share of all steps, from 0 to 1; it replaces ``steps``.
    """

    def __init__(self, steps: int = 100, ratio: float | None = None) -> None:
        if steps < 0 or (ratio is not None and not 0 <= ratio <= 1):
            raise UserError("warmup.steps must be 0 or more, and warmup.ratio from 0 to 1.")
        self.steps = steps
        self.ratio = ratio

    def steps_of(self, total_steps: float) -> int:
        """Returns the number of warm-up steps of a run: as asked for, or a tenth of a run that is not longer."""
        if self.ratio is not None:
            return 0 if math.isinf(total_steps) else round(self.ratio * total_steps)
        if self.steps >= total_steps:
            shorter = max(1, round(total_steps / 10)) if total_steps > 1 else 0
            log.warning(
                "The warm-up of %d steps is not shorter than the whole run of %d: it is shrunk to %d. "
                "Set --warmup.steps, or --warmup.ratio 0.05.", self.steps, total_steps, shorter,
            )  # fmt: skip
            return shorter
        return self.steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.warmup_steps = self.steps_of(trainer.estimated_stepping_batches)  # type: ignore[assignment]
