"""What a run directory holds: the checkpoint to resume from, or the work of another run."""

from __future__ import annotations

import logging
from pathlib import Path

from typst_lit.callbacks.checkpoint_files import checkpoint_directory, integrity_error, newest_intact
from typst_lit.errors import UserError

log = logging.getLogger(__name__)


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
