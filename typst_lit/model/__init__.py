"""The language model: base model, adapter, forward pass, loss, and the LightningModule that trains it."""

import logging
from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.model.backbones import Backbone as Backbone
    from typst_lit.model.backbones import PretrainedBackbone as PretrainedBackbone
    from typst_lit.model.lr import LearningRate as LearningRate
    from typst_lit.model.lr import Schedule as Schedule
    from typst_lit.model.module import TypstModule as TypstModule
    from typst_lit.model.step_guard import StepGuard as StepGuard

# When it is imported, bitsandbytes logs a warning that a package with optional CPU kernels is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Backbone": "typst_lit.model.backbones",
        "LearningRate": "typst_lit.model.lr",
        "PretrainedBackbone": "typst_lit.model.backbones",
        "Schedule": "typst_lit.model.lr",
        "StepGuard": "typst_lit.model.step_guard",
        "TypstModule": "typst_lit.model.module",
    },
)
