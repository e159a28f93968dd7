"""What of a forward pass is kept for the backward pass, and where."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from typst_lit.model.attention import KERNELS

Checkpointing = Literal["full", "none", "selective", "offload"]


def policy_of(value: Checkpointing | bool) -> Checkpointing:
    """Returns the policy that a setting means: true is full, false is none."""
    if isinstance(value, bool):
        return "full" if value else "none"
    return value


def enable_activation_checkpointing(model: PreTrainedModel, policy: Checkpointing) -> None:
    """Makes a model's layers keep only what the policy says; for ``offload``, see `offload_activations` too."""
    if policy == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}  # the only kind that works with DDP
    if policy == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _keep_attention(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # What attention gives is as large as a layer's input, and by far the dearest to compute again in long documents.
    kept = operator.name().split(".")[0] in KERNELS if hasattr(operator, "name") else False
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def offload_activations(policy: Checkpointing) -> AbstractContextManager[Any]:
    """Returns the context for a forward pass: with ``offload``, the layers' inputs wait in the host's memory."""
    return save_on_cpu(pin_memory=torch.cuda.is_available()) if policy == "offload" else nullcontext()
