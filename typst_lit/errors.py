"""The one error a user is meant to read."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """A fault that the user can mend. The command line prints its text, without a traceback, and exits with status 1.

    The text names what is wrong, where (file, record, field), and the way out.
    """


class Stopped(BaseException):
    """A run that was asked to stop, and has saved what it did.

    Like KeyboardInterrupt no Exception: it may come up in a signal's handler, and nothing on the way shall swallow it.

    Args:
        text: what happened.
        status: the exit status, 128 and the signal's number.
        resumable: whether there is a checkpoint to go on from.
    """

    def __init__(self, text: str, status: int, resumable: bool = True) -> None:
        super().__init__(text)
        self.status = status
        self.resumable = resumable


class UsageError(UserError):
    """A command line or configuration that can't be understood: exit status 2."""


def listing(items: Sequence[str], limit: int = 50) -> str:
    """Returns the items one a line, indented, the last line counting those beyond ``limit``."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
