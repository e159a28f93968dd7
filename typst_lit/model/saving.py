"""Saving what was trained, so that neither a crash nor a full disk damages what was saved before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from typst_lit.data.prompts import PromptTemplate
from typst_lit.errors import UserError
from typst_lit.files import atomic_write, fsync_directory, scratch_directory, sha256
from typst_lit.manifest import claim_directory, move_output
from typst_lit.model.locations import METADATA_FILE, AdapterMetadata, read_json

CARD_FILE = "README.md"
FILE_HINT = "Move it, or use another `run_dir`."
DIRECTORY_HINT = "Use another `run_dir`."
CHECKSUMS = "sha256"  # key in the metadata: of the weights next to it, and of those that they are about to replace


def save_weights(
    model: nn.Module,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    card: str,
    metadata: AdapterMetadata | None = None,
) -> None:
    """Saves an adapter (or a model without one) in safetensors, with tokenizer, template and model card.

    Everything is written to a temporary directory next to the target and moved file by file, the weights last: a
    reader, or a crash, finds the old weights or the new ones, never half of either.

    Args:
        model: what was trained.
        directory: where to save it.
        tokenizer: of the model.
        template: the prompt template of its training.
        card: text of the model card.
        metadata: what else is known of its training.

    Raises:
        UserError: when it can't be written, or the directory contains other files than those of an adapter. The adapter
            that was there before is intact.
    """
    # By default, PEFT asks the hub at every save whether the frozen embeddings should be saved too.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    try:
        claim_directory(directory, "adapter", _former_files, hint=DIRECTORY_HINT)
        with scratch_directory(directory.parent) as scratch:
            model.save_pretrained(str(scratch), **options)  # type: ignore[operator]
            tokenizer.save_pretrained(str(scratch))
            write_metadata(scratch, template, metadata, _checksums(scratch, directory))
            atomic_write(scratch / CARD_FILE, card.encode())
            for file in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
                move_output(file, directory / file.name, FILE_HINT)
        fsync_directory(directory)
    except Exception as error:
        # Where the disk is full, the libraries below raise SafetensorError, or a plain Exception.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise UserError(
            f"{directory} could not be written ({error}). What was there before is intact.",
            hint="Free some space, or use another `run_dir`.",
        ) from error


def write_metadata(
    directory: Path, template: PromptTemplate, metadata: AdapterMetadata | None = None, checksums: Sequence[str] = ()
) -> None:
    """Writes the file from which `adapter_template` and `adapter_metadata` read.

    Args:
        directory: of an adapter or a model.
        template: the prompt template of its training.
        metadata: what else is known of its training.
        checksums: of the weights that may be next to it.
    """
    content = {"template": template.describe(), **(metadata or AdapterMetadata()).to_json()}
    if checksums:
        content[CHECKSUMS] = list(checksums)
    atomic_write(directory / METADATA_FILE, (json.dumps(content, indent=2) + "\n").encode())


def update_metadata(directory: Path, metadata: AdapterMetadata) -> None:
    """Replaces what is known of an adapter's training; its template and checksums stay.

    Args:
        directory: of an adapter or a model.
        metadata: what is known now.
    """
    file = directory / METADATA_FILE
    content = (read_json(file) if file.is_file() else {}) | metadata.to_json()
    atomic_write(file, (json.dumps(content, indent=2) + "\n").encode())


def _former_files(directory: Path) -> list[str] | None:
    """Returns the files of an adapter that a version without manifests of directories saved; None if it saved none."""
    return [path.name for path in directory.iterdir()] if (directory / METADATA_FILE).is_file() else None


def _checksums(new: Path, old: Path) -> list[str]:
    # The metadata is moved before the weights: for a moment it is next to the old ones.
    files = [directory / SAFETENSORS_WEIGHTS_NAME for directory in (new, old)]
    return list(dict.fromkeys(sha256(file) for file in files if file.is_file()))


def check_same_weights(saved: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Checks that a checkpoint has the weights that a run trains, in the same shapes.

    Raises:
        UserError: when it was saved with another adapter or base model.
    """
    saved_shapes, shapes = ({name: weight.shape for name, weight in weights.items()} for weights in (saved, trained))
    names = saved_shapes.keys() | shapes.keys()
    mismatched = sorted(name for name in names if saved_shapes.get(name) != shapes.get(name))
    if mismatched:
        name = mismatched[0]
        raise UserError(
            f"the checkpoint was saved with another adapter or base model: {len(mismatched)} weights differ, the first "
            f"is {name} (checkpoint: {_format(saved_shapes.get(name))}, this run: {_format(shapes.get(name))}).",
            hint="Use the settings it was saved with (config.yaml in its run directory), or start from scratch without "
            "`ckpt_path`.",
        )


def _format(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape))
