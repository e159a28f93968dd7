"""Checkpoints on the disk: whole or not there, told apart from damaged ones, the newest good one found.

A checkpoint is a file ``00007-step-140.ckpt`` and, written after it, a manifest ``00007-step-140.json`` with its size
and SHA-256. The first number counts the saves of a run. ``last.ckpt`` is a link to the newest one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from typst_lit.errors import UserError
from typst_lit.files import atomic_write, sha256

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes whole checkpoints, and loads plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            atomic_write(path, lambda stream: torch.save(checkpoint, stream))
            manifest = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            text = json.dumps({**manifest, "step": checkpoint["global_step"]}).encode()
            atomic_write(path.with_suffix(".json"), lambda stream: stream.write(text))
            _link_last(path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            kept, _ = newest_intact(path.parent)
            what = f"the one before it, {kept.name}, is whole" if kept else "there is none before it"
            raise UserError(
                f"the checkpoint {path} could not be written ({error}); {what}. Free some space."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location=map_location or _to_cpu, weights_only=True)
        except Exception as error:
            raise UserError(f"{path}: is not a checkpoint of this trainer: {str(error).splitlines()[0]}") from error


def _to_cpu(storage: Any, location: str) -> Any:
    return storage


def next_path(directory: Path, step: int) -> Path:
    """Returns the name of the checkpoint to be saved next."""
    numbers = [int(path.name.split("-")[0]) for path in directory.glob("[0-9]*-step-*")]
    return directory / f"{max(numbers, default=0) + 1:05d}-step-{step}.ckpt"


def integrity_error(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint file; None when it is as its manifest says."""
    manifest = path.with_suffix(".json")
    if not path.is_file():
        return f"{path} is missing"
    if not manifest.is_file():
        return f"{path} is incomplete: it was being written when the run ended (it has no manifest)"
    try:
        told = json.loads(manifest.read_text("utf-8"))
        size, digest = int(told["bytes"]), str(told["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{manifest} is damaged ({error})"
    if path.stat().st_size != size:
        return f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}"
    return None if sha256(path) == digest else f"{path} is damaged: its bytes are not those that were written"


def newest_intact(directory: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest checkpoint that is whole, and what is wrong with those that are newer."""
    faults: list[str] = []
    for path in sorted(_all(directory), reverse=True):
        fault = integrity_error(path)
        if fault is None:
            return path, faults
        faults.append(fault)
    return None, faults


def keep_newest(directory: Path, count: int) -> None:
    """Removes all but so many of the newest checkpoints, and what killed saves have left."""
    for path in sorted(_all(directory), reverse=True)[count:]:
        path.with_suffix(".json").unlink(missing_ok=True)  # first: without it, the rest is known to be incomplete
        path.unlink(missing_ok=True)


def remove_stale(directory: Path) -> None:
    """Removes the temporary files of saves that were killed."""
    for stale in directory.glob(".*.ckpt-*"):
        stale.unlink(missing_ok=True)


def copy_checkpoint(path: Path, directory: Path, keep: int) -> None:
    """Copies a checkpoint into another directory, its manifest last."""
    for file in (path, path.with_suffix(".json")):
        with file.open("rb") as source:
            atomic_write(directory / file.name, lambda stream, source=source: shutil.copyfileobj(source, stream))  # type: ignore[misc]
    keep_newest(directory, keep)


def _all(directory: Path) -> list[Path]:
    return list(directory.glob("[0-9]*-step-*.ckpt"))


def _link_last(path: Path) -> None:
    """Makes ``last.ckpt`` a link to a checkpoint, where the file system knows links."""
    link = path.with_name(f".{LAST}-link")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(path.with_name(LAST))
