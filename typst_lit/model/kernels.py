"""What takes the place of transformers' and PEFT's own forward passes in training: less traffic, the same result."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.bnb import Linear4bit
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from typst_lit.errors import UserError


class _Lean(nn.Module):
    """Stands before PEFT's LoRA layer: handles the plain case and leaves every other to that.

    PEFT makes up to four tensors of the output's size: a copy of the base layer's output, the adapter's output, that
    times its scale, and the sum. Here the scale goes onto the few columns in the middle, and the multiplication that
    gives the adapter's output adds it, too.
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
        name = self._only_plain_adapter()
        down: Any = self.lora_A[name].weight if name else None
        if args or kwargs or name is None or not (torch.is_autocast_enabled(x.device.type) or x.dtype == down.dtype):
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        output: Tensor = self.base_layer(x)
        small = F.linear(self.lora_dropout[name](x), down) * self.scaling[name]
        up: Any = self.lora_B[name].weight
        return torch.addmm(output.flatten(0, -2), small.flatten(0, -2), up.T).view_as(output)

    def _only_plain_adapter(self) -> str | None:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        plain = name in self.lora_A and name not in self.lora_variant and self.lora_B[name].bias is None
        return name if plain else None


KINDS: dict[type, type] = {kind: type(f"Lean{kind.__name__}", (_Lean, kind), {}) for kind in (Linear, Linear4bit)}


def fuse_lora_forward(model: nn.Module) -> None:
    """Makes a model's LoRA layers on linear layers, of 4 bits or more, run the shorter forward pass."""
    for module in model.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]


def use_liger(model: PreTrainedModel) -> None:
    """Puts Liger's kernels into a model; the loss stays this project's.

    Raises:
        UserError: when Liger, or Triton, is not installed or does not know this architecture.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise UserError(
            f"model.liger: Liger's kernels can't be used ({error}). They need Triton, and so an NVIDIA or AMD GPU: "
            "pip install liger-kernel there, or leave --model.liger out."
        ) from error
    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"model.liger: Liger has no kernels for {kind} models. Leave --model.liger out.")
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
