"""When to log progress: every few seconds, however long a step takes."""

from __future__ import annotations

import time

LOG_INTERVAL_S = 10.0


class Every:
    """Says when an interval has passed.

    Args:
        seconds: the interval, in seconds.

    Example:
        >>> log_due = Every(seconds=0)
        >>> for step in range(2):
        ...     if log_due():
        ...         print(f"step {step}")
        step 0
        step 1
    """

    def __init__(self, seconds: float = LOG_INTERVAL_S) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def __call__(self) -> bool:
        """Returns whether the interval has passed since the start, or since this last returned True."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
