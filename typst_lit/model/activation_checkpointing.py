"""Activation checkpointing: what the backward pass recomputes instead of saving it, and offloading."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from typst_lit._compat.transformers import checkpoint_activations
from typst_lit.model.attention import FUSED_KERNELS

ActivationCheckpointing = Literal["full", "none", "selective", "offload"]


def resolve_policy(setting: ActivationCheckpointing | bool) -> ActivationCheckpointing:
    """Returns the policy that a setting stands for.

    >>> resolve_policy(True), resolve_policy(False), resolve_policy("selective")
    ('full', 'none', 'selective')
    """
    if isinstance(setting, bool):
        return "full" if setting else "none"
    return setting


def enable_activation_checkpointing(model: PreTrainedModel, policy: ActivationCheckpointing) -> None:
    """Makes a model's layers recompute their activations in the backward pass.

    ``offload`` also needs `offload_activations` around each forward pass.
    """
    if policy == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}  # the only variant that works with DDP
    if policy == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _save_attention)
    checkpoint_activations(model, options)


def _save_attention(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # The output of attention is as large as a layer's input, and in long documents by far the most expensive to
    # recompute.
    is_attention = hasattr(operator, "name") and operator.name().split(".")[0] in FUSED_KERNELS
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


def offload_activations(policy: ActivationCheckpointing) -> AbstractContextManager[Any]:
    """Returns the context for a forward pass: with ``offload``, the layers' inputs wait in the host's memory."""
    return save_on_cpu(pin_memory=torch.cuda.is_available()) if policy == "offload" else nullcontext()
