"""The training loss: cross-entropy summed over labelled tokens, from hidden states and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from typst_lit.data.batching import target_positions

CHUNK_ROWS = 512
HALF_SCALE = 1024.0  # in fp16, gradients are kept times this: those of tokens that are all but certain would round to 0


def chunked_cross_entropy(
    hidden: Tensor, labels: Tensor, head: nn.Module, predicting: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the loss of predicting each next labelled token, summed, and how many such tokens there are.

    Rows without a label never reach the head, and the rest pass it in chunks, so that no more than ``CHUNK_ROWS`` rows
    of logits exist at a time.

    Args:
        hidden: (B, T, D) last hidden states.
        labels: (B, T) ids, or `IGNORE_INDEX`; the label at t + 1 is predicted from the hidden state at t.
        head: the module that turns hidden states into logits (.., V).
        predicting: `target_positions` of the labels. Without them they are found here, for which the CPU has to wait
            until a GPU has done all it was given.

    Returns:
        Scalar fp32 sum, differentiable in ``hidden`` and the head's weights, and the count as an integer scalar.
    """
    if predicting is None:
        predicting = target_positions(labels)
    rows = hidden.flatten(0, 1).index_select(0, predicting)
    targets = labels.flatten().index_select(0, predicting + 1)
    return linear_cross_entropy(rows, targets, head), torch.full((), len(rows), device=rows.device)


def linear_cross_entropy(rows: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Returns the summed loss (scalar, fp32) of rows (N, D) that all have a target (N)."""
    if not len(rows):
        return head(rows).sum().float()  # 0, in which hidden states and head take part like always
    if type(head) is nn.Linear and head.bias is None:
        weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
        return _LinearCrossEntropy.apply(rows, weight, targets)
    total = rows.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(rows.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
        total = total + checkpoint(_chunk_loss, part, wanted, head, use_reentrant=False)
    return total


def _chunk_loss(rows: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and summed cross-entropy in one: the gradients are computed with the loss, chunk by chunk.

    So each chunk's logits are computed once, and the backward pass only scales what is there. A frozen head costs
    nothing: its gradient is not computed.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Returns the summed loss (fp32) of rows (N, D) and the head's weight (V, D) for targets (N)."""
        device = rows.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        factor = HALF_SCALE if dtype is torch.float16 else 1.0
        want_rows, want_weight, _ = ctx.needs_input_grad
        cast = weight.to(dtype)
        row_gradient = torch.empty_like(rows) if want_rows else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        # All chunks and all steps of one share this memory: logsumexp would need as much again, and so would the next
        # chunk's logits before this one's are gone.
        chunk = (min(CHUNK_ROWS, len(rows)), len(weight))
        logits = torch.empty(chunk, dtype=dtype, device=rows.device)
        wide = logits if dtype is torch.float32 else torch.empty(chunk, dtype=torch.float32, device=rows.device)
        with torch.autocast(device, enabled=False):
            for at in range(0, len(rows), CHUNK_ROWS):
                here = slice(at, at + CHUNK_ROWS)
                part, wanted = rows[here].to(dtype), targets[here, None]
                narrow = torch.mm(part, cast.T, out=logits[: len(part)])
                exact = wide[: len(part)].copy_(narrow)
                exact.sub_(exact.amax(-1, keepdim=True))
                chosen = exact.gather(-1, wanted)
                summed = exact.exp_().sum(-1, keepdim=True)
                total += (summed.log() - chosen).sum()
                if not (want_rows or want_weight):
                    continue
                exact.div_(summed)  # softmax, and now minus one-hot
                exact.scatter_add_(-1, wanted, torch.full_like(summed, -1.0))
                gradient = narrow.copy_(exact.mul_(factor))
                if row_gradient is not None:
                    row_gradient[here] = gradient @ cast
                if weight_gradient is not None:
                    weight_gradient += gradient.T @ part
        ctx.save_for_backward(row_gradient, weight_gradient)
        ctx.weight_dtype, ctx.factor = weight.dtype, factor
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Returns the gradients times that of the sum."""
        rows, weight = ctx.saved_tensors
        upstream = upstream / ctx.factor
        return (
            None if rows is None else rows * upstream.to(rows.dtype),
            None if weight is None else (weight * upstream).to(ctx.weight_dtype),
            None,
        )
