"""The errors that a user is meant to read."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits with status 1.

    Settings are named as the Python API and the YAML files have them, dotted and in backquotes: ```data.max_length```,
    or with the value to give, ```data.max_length=4096```. The command line prints them as flags of the command that
    runs.

    Args:
        problem: what is wrong, and where: file, record, field.
        setting: the setting whose value is wrong, if one is: ``model.use_4bit``.
        hint: how to fix it.
    """

    def __init__(self, problem: str, *, setting: str | None = None, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.setting = setting
        self.hint = hint

    def __str__(self) -> str:
        named = f"`{self.setting}`: {self.problem}" if self.setting else self.problem
        if not self.hint:
            return named
        separator = "\n" if "\n" in named else " "
        return f"{named}{separator}{self.hint}"


class UsageError(UserError):
    """A command line or configuration that can't be parsed: exit status 2."""


class RunStopped(BaseException):
    """A run that was asked to stop, and has saved its progress.

    Like KeyboardInterrupt, not an Exception: it may be raised in a signal handler, and no code in between may catch it.

    Args:
        message: what happened.
        status: the exit status: 128 plus the signal's number.
        resumable: whether there is a checkpoint to resume from.
    """

    def __init__(self, message: str, status: int, resumable: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.resumable = resumable


def listing(items: Sequence[str], limit: int = 50) -> str:
    """Returns the items one per line, indented; the last line counts those beyond ``limit``."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """Returns the count with its noun.

    >>> plural(1, "record"), plural(2, "record")
    ('1 record', '2 records')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
