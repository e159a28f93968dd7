"""The trainer's defaults, and its precision."""

from __future__ import annotations

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
