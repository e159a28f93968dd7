"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file through a temporary one in its directory, flushed to the disk and renamed.

    Whatever happens meanwhile, the name holds what it held before, or all that was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(8)}")  # a name of its own, with the usual permissions
    try:
        with scratch.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()


def sync_directory(path: Path) -> None:
    """Flushes a directory, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
