"""Liger's kernels for a fake step: functions that allocate and save what those do (read in Liger 0.8.2).

The norms save their input and one number per row, and the gated layers gate and up, instead of several temporaries;
both write gradients over what they no longer need. The rotary embedding is left as it is: Liger's saves the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

NOT_REPLACED = ("q_norm", "k_norm")  # norms that Liger leaves alone


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, inputs.new_empty(inputs.shape[:-1], dtype=torch.float32), weight)
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        weight = ctx.saved_tensors[2]
        return gradient, torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return gate, up


def use_fake_liger(base: PreTrainedModel) -> None:
    """Replaces the forward passes of a model's norms and gated layers."""
    for name, module in base.named_modules():
        children = dict(module.named_children())
        if type(module).__name__.endswith("RMSNorm") and name.rpartition(".")[2] not in NOT_REPLACED:
            _replace_norm(module)
        elif children.keys() >= {"gate_proj", "up_proj", "down_proj"}:
            _replace_gated_layer(module)


def _replace_norm(norm: nn.Module) -> None:
    norm.forward = lambda inputs: _RmsNorm.apply(inputs, norm.weight)


def _replace_gated_layer(mlp: Any) -> None:
    mlp.forward = lambda inputs: mlp.down_proj(_SiluMul.apply(mlp.gate_proj(inputs), mlp.up_proj(inputs)))
