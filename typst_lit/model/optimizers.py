"""Optimizers: by the name of a built-in one, or any other by its class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from typst_lit.errors import UserError

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
OptimizerSetting = OptimizerName | OptimizerCallable


def parameter_groups(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Returns the trained parameters as parameter groups; ``decayed`` says whether weight decay applies.

    Norm weights and biases are vectors, and everything that should decay is a matrix.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "decayed": True},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "decayed": False},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(optimizer: OptimizerSetting, parameters: Iterable[Tensor], device: torch.device) -> Optimizer:
    """Returns an optimizer for the trained ones among the parameters. Learning rate and weight decay are set later.

    Raises:
        UserError: when the optimizer needs another device.
    """
    groups = parameter_groups(parameters)
    if callable(optimizer):
        return optimizer(groups)
    if optimizer == "adamw":
        return torch.optim.AdamW(groups)
    if device.type != "cuda":
        raise UserError(
            f"{optimizer} needs an NVIDIA GPU.", setting="model.optimizer", hint="Use `model.optimizer=adamw`."
        )
    import bitsandbytes

    return (bitsandbytes.optim.AdamW8bit if optimizer == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit)(groups)
