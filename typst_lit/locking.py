"""Locks between processes: one writer per file or directory, on local disks and on network drives that have locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

from typst_lit.errors import UserError

log = logging.getLogger(__name__)
RESERVED_PREFIX = ".typst-lit-"  # of the hidden files and directories that only this program uses
LOCK_NAME = f"{RESERVED_PREFIX}lock"
# What flock raises on file systems without locks; EBADF: on a directory in NFS, which locks only what is writable
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
MAX_NAME_BYTES = 255
_descriptors: set[int] = set()  # of the locks that this process holds
_warned: set[Path] = set()  # directories whose missing locks were reported


def try_flock(descriptor: int) -> bool | None:
    """Locks an open file without waiting.

    Returns:
        True when it is locked, False when another process holds the lock, None when the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


class FileLock:
    """Makes this process the only writer of a file or directory, until `release` or the end of the process.

    The lock is on a hidden file next to the file, or in the directory: it contains process, host and start time, and a
    killed process leaves it without a lock. Forked children do not inherit the lock. On a file system without locks,
    a warning is logged once.

    Args:
        path: the file, or an existing directory.
        hint: what a user can do while another process writes.

    Raises:
        UserError: when another process, or this one, has the lock.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     with FileLock(Path(directory), "Wait."):
        ...         sorted(path.name for path in Path(directory).iterdir())
        ['.typst-lit-lock']
    """

    def __init__(self, path: Path, hint: str) -> None:
        self.path = _lock_path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(self.path, path, hint)
        self.release = weakref.finalize(self, _release, self.path, descriptor, os.getpid())

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def check_unlocked(path: Path, hint: str) -> None:
    """Checks that no process has the lock of a file or directory.

    Raises:
        UserError: when one has.
    """
    lock_path = _lock_path(path)
    with contextlib.suppress(OSError):
        descriptor = os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if try_flock(descriptor) is False:
                raise _locked_error(descriptor, path, hint)
        finally:
            os.close(descriptor)


def _lock_path(path: Path) -> Path:
    if path.is_dir():
        return path.resolve() / LOCK_NAME
    name = f"{LOCK_NAME}-{path.name}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f"{LOCK_NAME}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()}"
    return path.parent.resolve() / name


def _open_locked(lock_path: Path, path: Path, hint: str) -> int | None:
    """Returns the descriptor of the locked file; None where the file system has no locks."""
    while True:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            locked = try_flock(descriptor)
            if locked is False:
                raise _locked_error(descriptor, path, hint)
            if locked is None:
                _warn(lock_path)
                os.close(descriptor)
                return None
            if _is_same_file(descriptor, lock_path):  # else its holder removed it after this process opened it
                _write_owner(descriptor)
                _descriptors.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _release(lock_path: Path, descriptor: int | None, pid: int) -> None:
    if descriptor is None or os.getpid() != pid:
        return
    with contextlib.suppress(OSError):  # the directory may be gone
        if _is_same_file(descriptor, lock_path):
            lock_path.unlink()
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    owner = {"pid": os.getpid(), "host": os.uname().nodename, "started": started}
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _locked_error(descriptor: int, path: Path, hint: str) -> UserError:
    owner: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):  # it may be written at this moment
        content = json.loads(os.pread(descriptor, 1000, 0))
        owner = content if isinstance(content, dict) else {}
    process = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    since = f" (since {owner['started']})" if "started" in owner else ""
    return UserError(f"{path}: {process} is writing it{since}.", hint=hint)


def _warn(lock_path: Path) -> None:
    with contextlib.suppress(OSError):
        lock_path.unlink()
    if lock_path.parent not in _warned:
        _warned.add(lock_path.parent)
        log.warning(
            "%s: this file system has no locks. Let only one process write there at the same time.", lock_path.parent
        )


def _close_inherited() -> None:
    """Closes the locks in a forked child: they would outlive the parent in it."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_inherited)
