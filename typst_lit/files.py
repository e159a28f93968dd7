"""Atomic writes and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def atomic_write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file through a temporary one in the same directory, which is flushed to the disk and renamed.

    Whatever happens meanwhile, the path holds either its old content or all of the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(
        f".{path.name}-{secrets.token_hex(8)}"
    )  # not by tempfile, whose files only the owner reads
    try:
        with scratch.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
        fsync_directory(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


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
