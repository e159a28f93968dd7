"""What the callbacks of this package attach to, typed: `TypstModule` and `TypstDataModule`."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.model.module import TypstModule


def datamodule(trainer: Trainer) -> TypstDataModule:
    """Returns a trainer's data module.

    Raises:
        TypeError: if it is not a `TypstDataModule`.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, TypstDataModule):
        raise TypeError(f"this callback needs a TypstDataModule, not {type(data).__name__}")
    return data


def typst_module(pl_module: LightningModule) -> TypstModule:
    """Returns a callback's module.

    Raises:
        TypeError: if it is not a `TypstModule`.
    """
    if not isinstance(pl_module, TypstModule):
        raise TypeError(f"this callback needs a TypstModule, not {type(pl_module).__name__}")
    return pl_module
