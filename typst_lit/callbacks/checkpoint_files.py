"""Checkpoint files: written atomically, verified by checksum; the newest intact one is found.

A checkpoint is a file ``00007-step-140.ckpt`` and, written after it, a manifest ``00007-step-140.json`` with its size
and SHA-256. The first number counts the checkpoints of a run. ``last.ckpt`` is a link to the newest one.
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
    """Writes checkpoints atomically, and loads plain data only, no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            atomic_write(path, lambda stream: torch.save(checkpoint, stream))
            manifest = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            text = json.dumps({**manifest, "step": checkpoint["global_step"]}).encode()
            atomic_write(path.with_suffix(".json"), lambda stream: stream.write(text))
            _link_last(path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            previous, _ = newest_intact(path.parent)
            state = f"the previous one, {previous.name}, is intact" if previous else "there is no previous one"
            problem = f"the checkpoint {path} could not be written ({error}); {state}."
            raise UserError(problem, hint="Free some space.") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location=map_location or _to_cpu, weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is not a checkpoint of this trainer: {str(error).splitlines()[0]}") from error


def _to_cpu(storage: Any, location: str) -> Any:
    return storage


def checkpoint_directory(run_dir: str | Path) -> Path:
    """Returns the directory of a run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def next_path(directory: Path, step: int) -> Path:
    """Returns the path of the next checkpoint."""
    numbers = [int(path.name.split("-")[0]) for path in directory.glob("[0-9]*-step-*")]
    return directory / f"{max(numbers, default=0) + 1:05d}-step-{step}.ckpt"


def integrity_error(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint file, or None if it matches its manifest."""
    manifest = path.with_suffix(".json")
    if not path.is_file():
        return f"{path} is missing"
    if not manifest.is_file():
        return f"{path} is incomplete: it was being written when the run ended (it has no manifest)"
    try:
        expected = json.loads(manifest.read_text("utf-8"))
        size, digest = int(expected["bytes"]), str(expected["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{manifest} is damaged ({error})"
    if path.stat().st_size != size:
        return f"{path} is damaged: it has {path.stat().st_size} bytes instead of {size}"
    return None if sha256(path) == digest else f"{path} is damaged: its checksum is not that of its manifest"


def newest_intact(directory: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest intact checkpoint, or None, and the integrity errors of those that are newer."""
    errors: list[str] = []
    for path in sorted(_checkpoints(directory), reverse=True):
        error = integrity_error(path)
        if error is None:
            return path, errors
        errors.append(error)
    return None, errors


def keep_newest(directory: Path, count: int) -> None:
    """Removes all but the ``count`` newest checkpoints."""
    for path in sorted(_checkpoints(directory), reverse=True)[count:]:
        path.with_suffix(".json").unlink(missing_ok=True)  # first: without it, the checkpoint counts as incomplete
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


def _checkpoints(directory: Path) -> list[Path]:
    return list(directory.glob("[0-9]*-step-*.ckpt"))


def _link_last(path: Path) -> None:
    """Makes ``last.ckpt`` a link to a checkpoint, if the file system supports links."""
    link = path.with_name(f".{LAST}-link")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(path.with_name(LAST))
