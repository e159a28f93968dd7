"""Files that are replaced atomically, temporary files, output streams, and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from typst_lit.locking import RESERVED_PREFIX, try_flock

TEMPORARY_PREFIX = f"{RESERVED_PREFIX}tmp-"
Content = bytes | Callable[[BinaryIO], Any]  # of a file, or what writes it into a stream
_STANDARD_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def atomic_write(path: Path, content: Content) -> None:
    """Writes a file through a temporary one in the same directory, which is flushed to the disk and renamed.

    Whatever happens meanwhile, the path holds either its old content or all of the new one. A symbolic link is
    replaced, not followed. The temporary file is locked while it is written: an unlocked one is stale, see
    `remove_stale`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, stream = _open_temporary(path.parent)
    try:
        with stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                content(stream)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def atomic_symlink(path: Path, target: str) -> None:
    """Makes a path a symbolic link, atomically; does nothing where the file system has no links."""
    temporary = _temporary_path(path.parent)
    with contextlib.suppress(OSError):
        temporary.symlink_to(target)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Yields a temporary directory in a directory, on the same file system; it is removed unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    while True:
        path = _temporary_path(parent)
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if try_flock(descriptor) is not False and path.is_dir():  # else `remove_stale` saw it before it was locked
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def remove_stale(directory: Path) -> None:
    """Removes the temporary files and directories that killed processes left in a directory: those without a lock."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        _remove_if_unlocked(path)


def remove_reserved(path: Path) -> None:
    """Removes a directory whose name only this program uses, with its files; a symbolic link is not followed."""
    assert path.name.startswith(RESERVED_PREFIX), path
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def is_stream(path: str | Path) -> bool:
    """Returns whether an output is written to directly: standard output (``-``), a pipe or a device.

    >>> is_stream("-"), is_stream("/dev/null"), is_stream("report.json")
    (True, True, False)
    """
    if str(path) in _STANDARD_STREAMS or _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_stream(path: str | Path, content: Content) -> None:
    """Writes to standard output, a pipe or a device; see `is_stream`."""
    match = _DESCRIPTOR.fullmatch(str(path))
    descriptor = int(match[1]) if match else _STANDARD_STREAMS.get(str(path))
    if descriptor is not None:  # opened by its path, a redirected output would be overwritten from its start
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.dup(descriptor)
    with Path(path).open("wb") if descriptor is None else os.fdopen(descriptor, "wb") as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            content(stream)


def fsync_directory(path: Path) -> None:
    """Flushes a directory, so that a rename in it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _temporary_path(directory: Path) -> Path:
    return directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def _open_temporary(directory: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = _temporary_path(directory)
        stream = path.open("xb")  # not by tempfile, whose files only their owner can read
        if try_flock(stream.fileno()) is not False and os.fstat(stream.fileno()).st_nlink:
            return path, stream  # else `remove_stale` saw it before it was locked
        stream.close()


def _remove_if_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_symlink():
            path.unlink()
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not try_flock(descriptor):
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def cache_key(*values: Any) -> str:
    """Returns a short key that changes whenever one of some plain values does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
