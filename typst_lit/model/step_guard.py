"""What to do when an optimizer step would damage the weights, or when memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch

from typst_lit.errors import UserError

log = logging.getLogger(__name__)
EMA_DECAY = 0.98  # of the running mean and variance of the loss, per step
MIN_STEPS = 20  # before a loss can be called a spike
MAX_SKIPPED = 10  # consecutive steps
OVERFLOWS_BEFORE_WARNING = 5  # consecutive steps; the first few of an fp16 run overflow until the scale is low enough

Action = Literal["take", "skip", "stop"]


class MicroBatch(NamedTuple):
    """A micro-batch of this rank: its summed loss, and the source locations of its records."""

    loss: float
    origins: list[str]


class Decision(NamedTuple):
    """What to do with an optimizer step, and the problem it has, if it has one."""

    action: Action
    problem: str = ""


class StepGuard:
    """Checks every optimizer step before a weight changes.

    >>> guard = StepGuard(non_finite="skip")
    >>> guard.decide(loss=2.0, grad_norm=1.0).action
    'take'
    >>> guard.decide(loss=float("nan"), grad_norm=1.0).action
    'skip'

    Args:
        non_finite: when the loss or the gradient norm is NaN or infinite: stop the run, or skip the step. When val_loss
            is: stop the run, or log it.
        spike: when the loss is far above that of the steps before: stop, skip the step, warn and take it, or off.
        spike_sigma: how far above the running mean a loss is a spike, in running standard deviations.
        out_of_memory: when a micro-batch does not fit into memory: stop, or split it. From there on every micro-batch
            is computed in smaller ones, with the same samples and the same gradient.
    """

    def __init__(
        self,
        non_finite: Literal["stop", "skip"] = "stop",
        spike: Literal["stop", "skip", "warn", "off"] = "warn",
        spike_sigma: float = 8.0,
        out_of_memory: Literal["stop", "split"] = "stop",
    ) -> None:
        if not spike_sigma > 0:
            raise UserError(f"must be above 0, not {spike_sigma}.", setting="watchdog.spike_sigma")
        self.non_finite = non_finite
        self.spike = spike
        self.spike_sigma = spike_sigma
        self.out_of_memory = out_of_memory
        self.num_steps = 0  # that the running mean and variance have seen
        self.mean = 0.0
        self.variance = 0.0
        self.num_skipped = 0  # consecutive
        self.num_overflows = 0  # consecutive

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint saves: the running values, not the settings."""
        return {name: getattr(self, name) for name in ("num_steps", "mean", "variance", "num_skipped", "num_overflows")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the running values from a checkpoint."""
        vars(self).update(state)

    def allows_step(
        self, step: int, loss: float, grad_norm: float, micro_batches: Sequence[MicroBatch], fp16_scaler: bool = False
    ) -> bool:
        """Returns whether an optimizer step may change the weights, and logs the samples of one that has a problem.

        Args:
            step: its number, for messages.
            loss: its mean loss over all ranks.
            grad_norm: the norm of its gradient.
            micro_batches: this rank's part of the step.
            fp16_scaler: whether a gradient scaler skips steps whose gradient is not finite by itself.

        Raises:
            UserError: when the run must stop.
        """
        action, problem = self.decide(loss, grad_norm, fp16_scaler)
        if not problem:
            return True
        # Every rank decides the same, so every rank gets here.
        non_finite = [batch for batch in micro_batches if not math.isfinite(batch.loss)]
        samples = "\n".join(f"  {origin}" for origin in _gather_origins(non_finite or micro_batches))
        if action == "stop":
            raise UserError(
                f"{problem} at step {step}. The weights were not changed. The samples of the step:\n{samples}\n",
                hint="Check them; if they are fine, lower `model.learning_rate` or raise `model.warmup_steps`. Resume "
                "from the last checkpoint with `ckpt_path=last`; `watchdog.non_finite=skip` or `watchdog.spike=skip` "
                "skips such steps.",
            )
        consequence = ": the step is skipped" if action == "skip" else ""
        log.warning("%s at step %d%s. The samples of the step:\n%s", problem, step, consequence, samples)
        return action == "take"

    def check_val_loss(self, step: int, val_loss: float) -> None:
        """Checks the loss of a validation during training, before what was trained is saved.

        Args:
            step: the number of the last step, for messages.
            val_loss: the mean loss over all ranks.

        Raises:
            UserError: when it is not finite, and the run must stop.
        """
        if math.isfinite(val_loss):
            return
        problem = f"val_loss is not finite ({val_loss}) after step {step}: the weights have diverged"
        if self.non_finite == "stop":
            raise UserError(
                f"{problem}. They were not saved as an adapter; one that an earlier validation saved is intact.",
                hint="Train again in another `run_dir`, with a lower `model.learning_rate` or more "
                "`model.warmup_steps`. `watchdog.non_finite=skip` continues such a run.",
            )
        log.warning("%s.", problem)

    def decide(self, loss: float, grad_norm: float, fp16_scaler: bool = False) -> Decision:
        """Returns what to do with a step; the arguments are those of `allows_step`."""
        overflow = fp16_scaler and math.isfinite(loss) and not math.isfinite(grad_norm)
        self.num_overflows = self.num_overflows + 1 if overflow else 0
        if self.num_overflows > MAX_SKIPPED:
            problem = f"the fp16 gradient overflowed in {self.num_overflows} consecutive steps, which were all skipped"
            return Decision("stop", problem)
        if not math.isfinite(loss):
            return self._react(self.non_finite, f"the loss ({loss}) is not finite")
        if not (math.isfinite(grad_norm) or overflow):
            return self._react(self.non_finite, f"the gradient norm ({grad_norm}) is not finite")
        limit = self.mean + self.spike_sigma * math.sqrt(self.variance)
        decision = Decision("take")
        if self.spike != "off" and self.num_steps >= MIN_STEPS and loss > limit:
            decision = self._react(self.spike, f"the loss of {loss:.4f} is a spike above the mean of {self.mean:.4f}")
        elif self.num_overflows == OVERFLOWS_BEFORE_WARNING:
            decision = Decision("take", f"the fp16 gradient overflowed in {self.num_overflows} consecutive steps")
        if decision.action == "take":
            self._update(loss)
            self.num_skipped = 0
        return decision

    def _react(self, reaction: str, problem: str) -> Decision:
        if reaction == "warn":
            return Decision("take", problem)
        if reaction == "stop":
            return Decision("stop", problem)
        self.num_skipped += 1
        if self.num_skipped > MAX_SKIPPED:
            return Decision("stop", f"{MAX_SKIPPED} consecutive steps were skipped, and again {problem}")
        return Decision("skip", problem)

    def _update(self, loss: float) -> None:
        self.num_steps += 1
        weight = max(1 - EMA_DECAY, 1 / self.num_steps)  # at first the plain mean of all steps
        deviation = loss - self.mean
        self.mean += weight * deviation
        self.variance = (1 - weight) * (self.variance + weight * deviation * deviation)


def _gather_origins(micro_batches: Sequence[MicroBatch]) -> list[str]:
    """Returns the source locations of the records of micro-batches, of all ranks. A collective call."""
    origins = [origin for batch in micro_batches for origin in batch.origins]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return origins
    by_rank: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(by_rank, origins)
    return [origin for rank_origins in by_rank for origin in rank_origins]
