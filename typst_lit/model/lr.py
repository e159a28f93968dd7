"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_factor(step: int, total_steps: float, warmup_steps: int, schedule: Schedule) -> float:
    """Returns what the peak learning rate is multiplied with at an optimizer step, the first being 0.

    It rises in a straight line over the warm-up, reaching 1 at its last step, and then falls to 0 at ``total_steps``
    in a straight line or half a cosine, or stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant" or math.isinf(total_steps):
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0 - done
