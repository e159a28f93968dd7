"""The learning rate as a pure function of the optimizer step.

It is set before every step, and no scheduler has a state of its own. So a resumed run follows its settings, not the
ones its checkpoint was saved with.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from typst_lit.errors import UserError

log = logging.getLogger(__name__)
ScheduleName = Literal["linear", "cosine", "constant"]
SHORTENED_WARMUP_RATIO = 0.1  # of the steps, where the run is shorter than the warm-up


class Schedule(ABC):
    """How the learning rate changes after the warm-up. A subclass is configured by its constructor.

    >>> class InverseSquareRoot(Schedule):
    ...     def factor(self, step: int, num_steps: float) -> float:
    ...         return (1 + step) ** -0.5
    >>> LearningRate(peak=1e-3, schedule=InverseSquareRoot(), warmup_steps=10).at(13, total_steps=100)
    0.0005
    """

    @abstractmethod
    def factor(self, step: int, num_steps: float) -> float:
        """Returns what the peak learning rate is multiplied by.

        Args:
            step: the optimizer step, counted from 0 at the end of the warm-up.
            num_steps: how many steps follow the warm-up; infinite for a run without an end.
        """


class LinearSchedule(Schedule):
    """Falls to 0 in a straight line."""

    def factor(self, step: int, num_steps: float) -> float:
        return 1.0 - _progress(step, num_steps)


class CosineSchedule(Schedule):
    """Falls to 0 in half a cosine."""

    def factor(self, step: int, num_steps: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * _progress(step, num_steps)))


class ConstantSchedule(Schedule):
    """Stays at the peak."""

    def factor(self, step: int, num_steps: float) -> float:
        return 1.0


def _progress(step: int, num_steps: float) -> float:
    return min(1.0, step / max(1.0, num_steps))


SCHEDULES: dict[str, Schedule] = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "constant": ConstantSchedule(),
}


@dataclass(frozen=True)
class LearningRate:
    """A peak, a linear warm-up to it, and a schedule after it.

    >>> rate = LearningRate(peak=2e-4, schedule="linear", warmup_steps=10)
    >>> [rate.at(step, total_steps=110) for step in (0, 9, 60, 110)]
    [2e-05, 0.0002, 0.0001, 0.0]

    Attributes:
        peak: the learning rate at the end of the warm-up.
        schedule: how it changes from there to the end of the run.
        warmup_steps: number of optimizer steps of the warm-up. Where the run is not longer, a tenth of the run.
        warmup_ratio: share of the run's steps, from 0 to 1; it replaces ``warmup_steps``.

    Raises:
        UserError: when a value is out of range.
    """

    peak: float = 2e-4
    schedule: ScheduleName | Schedule = "linear"
    warmup_steps: int = 100
    warmup_ratio: float | None = None

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise UserError(f"must be above 0, not {self.peak}.", setting="model.learning_rate")
        if self.warmup_steps < 0:
            raise UserError(f"must be 0 or more, not {self.warmup_steps}.", setting="model.warmup_steps")
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"must be from 0 to 1, not {self.warmup_ratio}.", setting="model.warmup_ratio")

    def num_warmup_steps(self, total_steps: float) -> int:
        """Returns the length of the warm-up in a run of ``total_steps`` optimizer steps."""
        if self.warmup_ratio is not None:
            return 0 if math.isinf(total_steps) else round(self.warmup_ratio * total_steps)
        if self.warmup_steps < total_steps:
            return self.warmup_steps
        return max(1, round(SHORTENED_WARMUP_RATIO * total_steps)) if total_steps > 1 else 0

    def at(self, step: int, total_steps: float) -> float:
        """Returns the learning rate of an optimizer step, the first being 0.

        The warm-up rises in a straight line and reaches the peak at its last step.
        """
        num_warmup_steps = self.num_warmup_steps(total_steps)
        if step < num_warmup_steps:
            return self.peak * ((step + 1) / num_warmup_steps)
        schedule = self.schedule if isinstance(self.schedule, Schedule) else SCHEDULES[self.schedule]
        return self.peak * schedule.factor(step - num_warmup_steps, total_steps - num_warmup_steps)

    def warn_if_shortened(self, total_steps: float) -> None:
        """Logs a warning when the run is too short for ``warmup_steps``."""
        num_warmup_steps = self.num_warmup_steps(total_steps)
        if self.warmup_ratio is None and num_warmup_steps < self.warmup_steps:
            log.warning(
                "The warm-up (%d) is not shorter than the run (optimizer steps: %d): it is shortened to %d. Set "
                "`model.warmup_steps`, or `model.warmup_ratio=0.05`.",
                self.warmup_steps,
                total_steps,
                num_warmup_steps,
            )
