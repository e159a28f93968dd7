"""Forward passes that replace those of PEFT and transformers in training: less memory traffic, the same result."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.bnb import Linear4bit
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from typst_lit._compat.liger import use_liger_kernels
from typst_lit.errors import UserError


class _FusedLoraForward(nn.Module):
    """Mixed in before a LoRA layer of PEFT: handles the plain case, and leaves every other one to PEFT.

    PEFT allocates up to four tensors of the output's size: a copy of the base layer's output, the adapter's output,
    that times its scale, and the sum. Here the scale is applied to the r columns in the middle, and the matrix product
    that gives the adapter's output also adds it.
    """

    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    scaling: dict[str, float]
    lora_variant: dict[str, Any]
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self._plain_adapter()
        down: Any = self.lora_A[adapter].weight if adapter else None
        is_plain = adapter is not None and not (args or kwargs)
        if not (is_plain and (torch.is_autocast_enabled(x.device.type) or x.dtype == down.dtype)):
            unfused: Tensor = super().forward(x, *args, **kwargs)
            return unfused
        output: Tensor = self.base_layer(x)
        low_rank = F.linear(self.lora_dropout[adapter](x), down) * self.scaling[adapter]  # type: ignore[index]
        up: Any = self.lora_B[adapter].weight  # type: ignore[index]
        return torch.addmm(output.flatten(0, -2), low_rank.flatten(0, -2), up.T).view_as(output)

    def _plain_adapter(self) -> str | None:
        """Returns the only active adapter, if it is plain LoRA without a bias."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        plain = name in self.lora_A and name not in self.lora_variant and self.lora_B[name].bias is None
        return name if plain else None


class FusedLoraLinear(_FusedLoraForward, Linear):
    """LoRA on a linear layer in 16 or 32 bits."""


class FusedLoraLinear4bit(_FusedLoraForward, Linear4bit):
    """LoRA on a linear layer in 4 bits."""


FUSED_CLASSES: dict[type, type] = {Linear: FusedLoraLinear, Linear4bit: FusedLoraLinear4bit}


def fuse_lora_forward(model: nn.Module) -> None:
    """Makes a model's LoRA layers on linear layers run the fused forward pass."""
    for module in model.modules():
        if type(module) in FUSED_CLASSES:
            module.__class__ = FUSED_CLASSES[type(module)]


def use_liger(model: PreTrainedModel) -> None:
    """Puts Liger's kernels into a model, except those for the loss, which is this project's.

    Raises:
        UserError: when Liger, or Triton, is not installed or does not support this architecture.
    """
    try:
        supported = use_liger_kernels(model)
    except ImportError as error:
        raise UserError(
            f"Liger's kernels can't be used ({error}). They need Triton, and so an NVIDIA or AMD GPU.",
            setting="model.liger",
            hint="Run `pip install liger-kernel` on a machine with one, or leave it out.",
        ) from error
    if not supported:
        raise UserError(
            f"Liger has no kernels for {model.config.model_type} models.", setting="model.liger", hint="Leave it out."
        )
