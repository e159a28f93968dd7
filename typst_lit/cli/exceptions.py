"""Exceptions as messages: what is printed instead of a traceback, and the exit status."""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import sys
from collections.abc import Sequence

from typst_lit.cli.messages import translate
from typst_lit.errors import RunStopped, UsageError, UserError

RESUME = "Resume from the last checkpoint with `ckpt_path=last`."
LOST_WORKER = (
    "a DataLoader worker died ({}), most often because it ran out of memory. `data.num_workers=0` works without "
    f"workers. {RESUME}"
)
LOST_RANK = (
    "another process of this run has ended ({}). Its own messages or its machine's log give the reason; often it ran "
    f"out of memory and was killed. {RESUME}"
)
DISK_FULL = "Free some space, or write to another disk. What was finished before is intact."
INTERRUPTED = "interrupted. `fit` resumes from its last checkpoint with --ckpt_path last, `predict` when run again."
# What gloo's RuntimeErrors say when a process of the group is gone
LOST_CONNECTIONS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def exit_status(error: BaseException, args: Sequence[str]) -> int | None:
    """Prints the message of an exception that ended a command, and returns the exit status.

    Args:
        error: the exception.
        args: the command line, the command first.

    Returns:
        The status; None for an exception that is a bug and needs its traceback.
    """
    if isinstance(error, RunStopped):
        command = shlex.join(["typst-lit", *_resuming(args, error)])
        return _print(f"{error}\nResume with:\n  {command}", error.status)
    # Lightning turns Ctrl-C into sys.exit(1), and a SIGTERM into a SystemExit of its own
    if _is_interrupt(error):
        return _print(INTERRUPTED, 130)
    if isinstance(error, BrokenPipeError | SystemExit) and _is_output_closed():
        return 128 + signal.SIGPIPE  # the status of Unix tools that write into a closed pipe
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    message = _message(error)
    return None if message is None else _print(f"error: {message}", 2 if isinstance(error, UsageError) else 1)


def _message(error: BaseException) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename or _is_disk_full(error)):
        path = f"{error.filename}: " if error.filename else ""  # an error of a stream that is written has no name
        return f"{path}{error.strerror}. {DISK_FULL if _is_disk_full(error) else ''}".rstrip()
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, RuntimeError) and first_line.startswith("DataLoader worker"):
        # torch raises this wherever the main thread is, even while another error is handled
        return str(_user_error_before(error) or LOST_WORKER.format(first_line))
    if _is_lost_rank(error):
        return LOST_RANK.format(first_line)
    if _is_out_of_memory(error):
        return f"out of memory: {first_line}"
    if _is_refused_by_lightning(error):
        return f"Lightning refuses these settings: {error}"
    return None


def _print(message: str, status: int) -> int:
    print(translate(message), file=sys.stderr)
    return status


def _resuming(args: Sequence[str], stop: RunStopped) -> list[str]:
    """Returns the arguments of a command that resumes a run that was stopped."""
    resuming, skip_value = [], False
    for arg in args:
        if not skip_value and not arg.startswith("--ckpt_path"):
            resuming.append(arg)
        skip_value = arg == "--ckpt_path"
    return [*resuming, "--ckpt_path", "last"] if stop.resumable else resuming


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"
    return isinstance(error, KeyboardInterrupt)


def _is_output_closed() -> bool:
    """Returns whether nobody reads standard output any more, as after ``| head``; if so, what is left is discarded."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is none, or it is not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always reported
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)  # Python flushes again at its end
    os.close(null)
    return True


def _is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _user_error_before(error: BaseException) -> UserError | None:
    """Returns the `UserError` that was being handled when an exception was raised, if there is one."""
    before = error.__context__
    return before if before is None or isinstance(before, UserError) else _user_error_before(before)


def _is_lost_rank(error: BaseException) -> bool:
    """Returns whether an exception only says that another process of a distributed run is gone."""
    if "torch.distributed" not in sys.modules:
        return False
    from torch.distributed import DistError

    is_gloo = type(error) is RuntimeError and any(text in str(error) for text in LOST_CONNECTIONS)
    return is_gloo or isinstance(error, DistError)


def _is_refused_by_lightning(error: BaseException) -> bool:
    if "lightning.pytorch" not in sys.modules:
        return False
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    return isinstance(error, MisconfigurationException)


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from typst_lit.model.oom import is_out_of_memory

    return is_out_of_memory(error)
