"""The training loss: cross-entropy summed over labeled tokens, from hidden states and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from typst_lit.data.batching import target_positions

CHUNK_ROWS = 512
FP16_GRADIENT_SCALE = 1024.0  # else the gradients of tokens that are all but certain round to 0 in fp16


def chunked_cross_entropy(
    hidden: Tensor, labels: Tensor, head: nn.Module, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the loss of predicting each labeled token from the one before, summed, and the number of such tokens.

    Rows without a label never reach the head, and the others pass it in chunks, so that never more than ``CHUNK_ROWS``
    rows of logits exist.

    >>> head = nn.Linear(8, 10, bias=False)
    >>> loss, count = chunked_cross_entropy(torch.zeros(1, 3, 8), torch.tensor([[-100, 4, 7]]), head)
    >>> count.item(), round(loss.item(), 4)  # 2 tokens, each one of 10
    (2, 4.6052)

    Args:
        hidden: (B, T, D) last hidden states.
        labels: (B, T) ids, or `IGNORE_INDEX`; the label at t + 1 is predicted from the hidden state at t.
        head: the module that turns hidden states into logits (.., V).
        positions: `target_positions` of the labels. If they are not given they are computed here, for which the CPU
            has to wait for the GPU.

    Returns:
        Scalar fp32 sum, differentiable in ``hidden`` and the head's weights, and the count as an integer scalar.
    """
    if positions is None:
        positions = target_positions(labels)
    rows = hidden.flatten(0, 1).index_select(0, positions)
    targets = labels.flatten().index_select(0, positions + 1)
    return linear_cross_entropy(rows, targets, head), torch.full((), len(rows), device=rows.device)


def linear_cross_entropy(rows: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Returns the summed loss (scalar, fp32) of rows (N, D) that all have a target (N)."""
    if not len(rows):
        return head(rows).sum().float()  # 0, with hidden states and head in its graph as always
    if type(head) is nn.Linear and head.bias is None:
        weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
        return _LinearCrossEntropy.apply(rows, weight, targets)
    total = rows.new_zeros((), dtype=torch.float32)
    for chunk, chunk_targets in zip(rows.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
        total = total + checkpoint(_chunk_loss, chunk, chunk_targets, head, use_reentrant=False)
    return total


def _chunk_loss(rows: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and summed cross-entropy in one: the gradients are computed with the loss, chunk by chunk.

    So each chunk's logits are computed once, and the backward pass only scales the gradients. That of a frozen head is
    not computed.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Returns the summed loss (fp32) of rows (N, D) and the head's weight (V, D) for targets (N)."""
        device = rows.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        factor = FP16_GRADIENT_SCALE if dtype is torch.float16 else 1.0
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        cast = weight.to(dtype)
        row_gradient = torch.empty_like(rows) if needs_rows else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        # All chunks share these buffers: logsumexp would allocate as much again, and so would the next chunk's logits
        # before this one's are freed.
        shape = (min(CHUNK_ROWS, len(rows)), len(weight))
        logits = torch.empty(shape, dtype=dtype, device=rows.device)
        wide = logits if dtype is torch.float32 else torch.empty(shape, dtype=torch.float32, device=rows.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(rows), CHUNK_ROWS):
                indices = slice(start, start + CHUNK_ROWS)
                chunk, chunk_targets = rows[indices].to(dtype), targets[indices, None]
                narrow = torch.mm(chunk, cast.T, out=logits[: len(chunk)])
                exact = wide[: len(chunk)].copy_(narrow)
                exact.sub_(exact.amax(-1, keepdim=True))
                target_logits = exact.gather(-1, chunk_targets)
                summed = exact.exp_().sum(-1, keepdim=True)
                total += (summed.log() - target_logits).sum()
                if not (needs_rows or needs_weight):
                    continue
                exact.div_(summed)  # softmax, from which the one-hot targets are subtracted
                exact.scatter_add_(-1, chunk_targets, torch.full_like(summed, -1.0))
                gradient = narrow.copy_(exact.mul_(factor))
                if row_gradient is not None:
                    row_gradient[indices] = gradient @ cast
                if weight_gradient is None:
                    continue
                if dtype is torch.float16:  # a sum over rows of what was scaled would overflow
                    weight_gradient.addmm_(exact.T, chunk.float())
                else:
                    weight_gradient += gradient.T @ chunk
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
