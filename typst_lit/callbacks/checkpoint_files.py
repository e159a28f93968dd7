"""Checkpoint files: written atomically, verified by checksum; the newest intact one is found.

A checkpoint is a file ``00007-step-140.ckpt`` and, written after it, a manifest ``00007-step-140.json`` with its size,
its SHA-256 and the ID of its run. The first number counts the checkpoints of a run. ``last.ckpt`` is a link to the
newest one.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from typst_lit.errors import UserError
from typst_lit.files import atomic_symlink, sha256
from typst_lit.manifest import is_listed, write_output

LAST = "last.ckpt"
FILE_HINT = "Move it, or use another `run_dir`."
RUN_ID = "run_id"  # key in a checkpoint and in its manifest


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and loads plain data only, no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            write_output(path, lambda stream: torch.save(checkpoint, stream), hint=FILE_HINT)
            manifest = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            manifest |= {"step": checkpoint["global_step"], RUN_ID: checkpoint.get(RUN_ID)}
            write_output(path.with_suffix(".json"), json.dumps(manifest).encode(), hint=FILE_HINT)
            atomic_symlink(path.with_name(LAST), path.name)
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def keep_newest(directory: Path, count: int, run_id: str | None = None) -> None:
    """Removes all but the ``count`` newest checkpoints.

    Args:
        directory: of the checkpoints.
        count: number of those to keep.
        run_id: the run whose checkpoints are removed; None for the directory of a run, where all are of this run.
    """
    for path in sorted(_checkpoints(directory), reverse=True)[count:]:
        if _is_of_run(path, run_id):
            path.with_suffix(".json").unlink(missing_ok=True)  # first: without it, the checkpoint counts as incomplete
            path.unlink(missing_ok=True)


def copy_checkpoint(path: Path, directory: Path, keep: int, run_id: str) -> None:
    """Copies a checkpoint into another directory, its manifest last.

    Args:
        path: of the checkpoint.
        directory: for the copies.
        keep: number of copies to keep.
        run_id: the run whose older copies are removed.
    """
    for file in (path, path.with_suffix(".json")):
        with file.open("rb") as source:
            write_output(
                directory / file.name, partial(shutil.copyfileobj, source), hint="Use another `checkpoint.copy_to`."
            )
    keep_newest(directory, keep, run_id)


def check_copies(directory: Path, run_id: str) -> None:
    """Checks that a directory for copies has no checkpoints of another run: they have the same names.

    Raises:
        UserError: when it has.
    """
    for path in sorted(_checkpoints(directory)):
        if path.with_suffix(".json").exists() and _read_run_id(path) not in (run_id, None):
            problem = f"{directory}: contains checkpoints of another run ({path.name})."
            raise UserError(problem, setting="checkpoint.copy_to", hint="Use another directory.")


def _is_of_run(path: Path, run_id: str | None) -> bool:
    """Returns whether a checkpoint may be removed: it has a manifest of the run, or this program did not finish it."""
    if not path.with_suffix(".json").exists():
        return is_listed(path)
    return run_id is None or _read_run_id(path) == run_id


def _read_run_id(path: Path) -> str | None:
    """Returns the run that saved a checkpoint; None for a checkpoint of an earlier version or a damaged manifest."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    run_id = manifest.get(RUN_ID) if isinstance(manifest, dict) else None
    return run_id if isinstance(run_id, str) else None


def _checkpoints(directory: Path) -> list[Path]:
    return list(directory.glob("[0-9]*-step-*.ckpt"))
