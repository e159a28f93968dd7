"""The trainer's defaults, its precision, and checks of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from typst_lit.errors import UserError
from typst_lit.model.backbones import compute_dtype

TRAINER_DEFAULTS = {
    "max_epochs": 3,
    "accumulate_grad_batches": 4,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,  # a step takes seconds, and a point of the curve next to nothing
    "num_sanity_val_steps": 1,
    "use_distributed_sampler": False,  # the data module's own sampler distributes the batches
    "enable_model_summary": False,  # the module itself logs how many parameters are trained
    "precision": None,  # `default_precision`
}
# Lightning checks few of its settings: smaller values end in errors of the arithmetic, or in a run that does nothing.
MINIMUMS = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,  # no limit
    "max_steps": -1,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,  # all
}
MAX_SEED = 2**32 - 1


def check_trainer_settings(settings: Mapping[str, Any], command: str) -> None:
    """Checks the settings of the trainer that Lightning itself would not refuse in words.

    Args:
        settings: of the trainer, by name.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: when one is out of range.
    """
    for name, minimum in MINIMUMS.items():
        value = settings.get(name)
        if isinstance(value, int | float) and not value >= minimum:
            raise UserError(f"must be {minimum} or more, not {value}.", setting=f"trainer.{name}")
    if command != "fit":
        return
    for name in ("limit_train_batches", "val_check_interval"):
        value = settings.get(name)
        if isinstance(value, int | float) and not value > 0:
            raise UserError(f"must be above 0, not {value}.", setting=f"trainer.{name}")
    if settings.get("max_epochs") == -1 and settings.get("max_steps") in (None, -1) and not settings.get("max_time"):
        raise UserError(
            "-1 is a run without an end.",
            setting="trainer.max_epochs",
            hint="Limit it with `trainer.max_epochs`, `trainer.max_steps` or `trainer.max_time`.",
        )


def check_seed(seed: Any) -> None:
    """Raises a `UserError` for a seed that the random number generators don't accept."""
    if isinstance(seed, int) and not 0 <= seed <= MAX_SEED:
        raise UserError(f"must be from 0 to {MAX_SEED}, not {seed}.", setting="seed_everything")


def default_precision(accelerator: Any) -> dict[str, str]:
    """Returns the trainer's precision for an accelerator: mixed with bf16 or fp16 on a GPU, else fp32.

    Args:
        accelerator: the trainer's setting: a name such as ``auto``, ``gpu`` or ``cpu``, or an object.
    """
    name = accelerator if isinstance(accelerator, str) else "auto"
    if name not in ("auto", "cuda", "gpu") or not CUDAAccelerator.is_available():
        return {"precision": "32-true"}
    return {"precision": "bf16-mixed" if compute_dtype(torch.device("cuda", 0)) is torch.bfloat16 else "16-mixed"}


def check_precision(precision: Any, use_4bit: bool) -> None:
    """Raises a `UserError` for a precision that would convert 4-bit weights."""
    if use_4bit and str(precision).endswith("-true") and precision != "32-true":
        raise UserError(
            f"{precision} would convert the 4-bit weights.",
            setting="trainer.precision",
            hint="Use `trainer.precision=bf16-mixed` or `trainer.precision=16-mixed`, or leave it out.",
        )
