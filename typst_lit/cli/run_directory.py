"""What a run directory holds: the checkpoint to resume from, or the work of another run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from typst_lit.callbacks.checkpoint_files import checkpoint_directory, integrity_error, newest_intact
from typst_lit.callbacks.resumable_checkpoint import SAVE_REQUEST
from typst_lit.errors import UserError
from typst_lit.locking import FileLock
from typst_lit.manifest import check_directory, check_separate, claim_directory
from typst_lit.model.locations import METADATA_FILE

log = logging.getLogger(__name__)
PLAN_FILE = "plan.yaml"
CONFIG_FILE = "config.yaml"
# Files of the user that a new run directory may contain: settings, logs, and the request of a checkpoint
IGNORED_FILES = ("*.yaml", "*.yml", "*.err", "*.log", "*.out", "*.txt", SAVE_REQUEST)
DIRECTORY_HINT = "Use another `run_dir`."
LOCK_HINT = "Wait until it ends, stop it, or use another `run_dir`."


def resolve_checkpoint(ckpt_path: str, run_dir: Path) -> Path:
    """Returns the checkpoint that ``ckpt_path`` means.

    Args:
        ckpt_path: a file; or a directory or, as ``last``, the run directory, of which it is the newest intact
            checkpoint. Damaged ones that are newer are logged and skipped.
        run_dir: the run directory.

    Raises:
        UserError: when there is none, naming the neighboring runs that have one, or when the file is damaged.
    """
    path = run_dir if ckpt_path == "last" else Path(ckpt_path)
    if path.is_file():
        has_manifest = path.resolve().with_suffix(".json").is_file()
        error = integrity_error(path.resolve()) if has_manifest else None
        if error:
            hint = f"`ckpt_path={path.parent}` resumes from the newest intact checkpoint there."
            raise UserError(f"{error}.", setting="ckpt_path", hint=hint)
        return path
    directory = checkpoint_directory(path) if checkpoint_directory(path).is_dir() else path
    checkpoint, errors = newest_intact(directory)
    for error in errors:
        log.warning("%s: this checkpoint is skipped.", error)
    if checkpoint:
        return checkpoint
    runs = sorted({str(manifest.parent.parent) for manifest in run_dir.parent.glob("*/checkpoints/*.json")})
    hint = "The run ended before the first one was saved; start it without `ckpt_path`."
    if runs:
        hint = f"These runs have one: {', '.join(runs)} (select one with `run_dir`)."
    raise UserError(f"{directory} contains no intact checkpoint.", setting="ckpt_path", hint=hint)


def check_run_dir_is_free(run_dir: Path) -> None:
    """Checks that a new run would not overwrite the work of another one.

    Raises:
        UserError: when it would, with the settings that resume that run, train its weights further, or start another.
    """
    checkpoint, _ = newest_intact(checkpoint_directory(run_dir))
    weights = next((path.parent for path in sorted(run_dir.glob("*/best/*.safetensors"))), None)
    options = ["`run_dir=NEW_DIRECTORY`   starts a new run"]
    if checkpoint is not None:
        options.insert(0, "`ckpt_path=last`   resumes that run where it stopped, with its optimizer")
    if weights is not None:
        setting = "model.adapter_path" if weights.parent.name == "adapter" else "model.base_model"
        options.insert(0, f"`{setting}={weights}` `run_dir=NEW_DIRECTORY`   trains those weights further, as a new run")
        contents = f"the {weights.parent.name} {weights}"
    elif checkpoint is not None:
        contents = f"the checkpoint {checkpoint} of an unfinished run"
    else:
        return
    listed = "\n".join(f"  {option}" for option in options)
    raise UserError(f"{run_dir} already contains {contents}, which this run would overwrite. Choose one of:\n{listed}")


def check_run_dir(run_dir: Path, inputs: Sequence[str], resumes: bool) -> None:
    """Checks that a fit may write to a run directory; nothing is written.

    Args:
        run_dir: the run directory.
        inputs: paths of the data.
        resumes: whether a run of this directory is resumed.

    Raises:
        UserError: when the directory contains files of the user.
    """
    if not resumes:
        check_separate(run_dir, inputs, DIRECTORY_HINT)
        check_directory(run_dir, "run", _former_files, ignored=IGNORED_FILES, hint=DIRECTORY_HINT)


@contextmanager
def claim_run_dir(run_dir: Path, resumes: bool) -> Iterator[None]:
    """Makes this process the only one that trains in a run directory, which is created if necessary.

    Raises:
        UserError: see `check_run_dir` and `check_run_dir_is_free`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(run_dir, LOCK_HINT):
        if not resumes:
            check_run_dir_is_free(run_dir)  # again: another process may have trained since
        former = _existing_files if resumes else _former_files
        claim_directory(run_dir, "run", former, ignored=IGNORED_FILES, hint=DIRECTORY_HINT)
        yield


def claim_if_free(run_dir: Path) -> None:
    """Makes a directory a run directory if it is new or empty, so that a fit may use it later."""
    with suppress(UserError):
        claim_directory(run_dir, "run", ignored=IGNORED_FILES)


def _former_files(run_dir: Path) -> list[str] | None:
    """Returns the files of a run of a version without manifests of directories; None if there is no such run."""
    patterns = ("checkpoints/*-step-*.json", f"*/*/{METADATA_FILE}", f"tensorboard/version_*/{CONFIG_FILE}")
    is_run = any(next(run_dir.glob(pattern), None) for pattern in patterns)
    return _existing_files(run_dir) if is_run else None


def _existing_files(run_dir: Path) -> list[str]:
    return [name for name in (PLAN_FILE, CONFIG_FILE) if (run_dir / name).is_file()]
