"""The watchdog: what to do about steps that would spoil the weights, and about batches that memory can't hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit.errors import UserError

log = logging.getLogger(__name__)
MEMORY = 0.98  # how much of the running mean and spread a step leaves
STEPS_TO_LEARN = 20  # before a loss can be called a spike
MOST_SKIPPED = 10  # steps in a row

Batches = Sequence[tuple[float, list[str]]]  # the loss of each micro-batch of a step, and where its records stood


class Watchdog(Callback):
    """Looks at every optimizer step before any weight changes.

    Args:
        non_finite: when the loss or the gradient is NaN or infinite, stop, or skip the step.
        spike: when the loss is far above that of the steps before, stop, skip the step, warn and take it, or nothing.
        spread: how far: so many times the running standard deviation above the running mean.
        out_of_memory: when a batch does not fit into memory, stop, or split it: from there on, every batch is run in
            parts, with the same samples and the same gradient.
    """

    def __init__(
        self,
        non_finite: Literal["stop", "skip"] = "stop",
        spike: Literal["stop", "skip", "warn", "off"] = "warn",
        spread: float = 8.0,
        out_of_memory: Literal["stop", "split"] = "stop",
    ) -> None:
        if not spread > 0:
            raise UserError(f"watchdog.spread must be above 0, not {spread}.")
        self.non_finite = non_finite
        self.spike = spike
        self.spread = spread
        self.out_of_memory = out_of_memory
        self.steps = 0
        self.mean = 0.0
        self.variance = 0.0
        self.skipped = 0  # in a row

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.watchdog = self  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps", "mean", "variance", "skipped")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def allows(self, trainer: Trainer, loss: float, norm: float, batches: Batches, overflow_allowed: bool) -> bool:
        """Returns whether a step shall change the weights.

        Args:
            trainer: the trainer.
            loss: of the step, over all processes.
            norm: of its gradient.
            batches: this process's part of the step.
            overflow_allowed: whether a gradient that is not finite is somebody else's business, as under fp16's scaler,
                which skips such steps itself.

        Raises:
            UserError: when the run shall stop, naming the samples of the step.
        """
        if not math.isfinite(loss) or not (overflow_allowed or math.isfinite(norm)):
            what = "the loss" if not math.isfinite(loss) else f"the gradient norm ({norm})"
            guilty = [batch for batch in batches if not math.isfinite(batch[0])]
            return self._react(self.non_finite, trainer, f"{what} is not finite", _named(trainer, guilty or batches))
        limit = self.mean + self.spread * math.sqrt(self.variance)
        if self.spike != "off" and self.steps >= STEPS_TO_LEARN and loss > limit:
            what = f"the loss of {loss:.4f} is a spike: it was {self.mean:.4f} on the whole"
            if not self._react(self.spike, trainer, what, _named(trainer, batches)):
                return False
        self._learn(loss)
        self.skipped = 0
        return True

    def _learn(self, loss: float) -> None:
        self.steps += 1
        weight = max(1 - MEMORY, 1 / self.steps)  # at first the plain mean of all steps
        off = loss - self.mean
        self.mean += weight * off
        self.variance = (1 - weight) * (self.variance + weight * off * off)

    def _react(self, reaction: str, trainer: Trainer, what: str, names: str) -> bool:
        step = trainer.global_step + 1
        if reaction == "skip":
            self.skipped += 1
            if self.skipped <= MOST_SKIPPED:
                log.warning("%s at step %d: the step is skipped. The samples were:\n%s", what, step, names)
                return False
            what = f"{MOST_SKIPPED} steps in a row were skipped, and again {what}"
        if reaction == "warn":
            log.warning("%s at step %d. The samples were:\n%s", what, step, names)
            return True
        raise UserError(
            f"{what} at step {step}. The weights were not changed. The samples were:\n{names}\nLook at them; if they "
            "are sound, lower --model.learning_rate or raise --warmup.steps. Go on from the last checkpoint with "
            "--ckpt_path last; --watchdog.non_finite skip or --watchdog.spike skip leave such steps out."
        )


def _named(trainer: Trainer, batches: Batches) -> str:
    names = [name for _, origins in batches for name in origins]
    if trainer.world_size > 1:
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, names)
        names = [name for process in everywhere for name in process]
    return "\n".join(f"  {name}" for name in names)
