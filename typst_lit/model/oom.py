"""What to do when memory runs out: recognize the error, and compute the same gradient from smaller micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from typst_lit.data.batching import Batch, split_batch

SummedLoss = Callable[[Batch], tuple[Tensor, Tensor]]
Result = TypeVar("Result")
# Substrings of the messages of libraries that raise a plain RuntimeError.
MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception, or one that caused it, means that memory ran out, on the GPU or the CPU.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    True
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or any(text in str(cause) for text in MESSAGES):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def run_with_oom_fallback(compute: Callable[[], Result], reduce_memory: Callable[[], bool]) -> Result:
    """Returns ``compute()``, retried for as long as memory runs out and ``reduce_memory`` finds something to reduce.

    Args:
        compute: what to run. It must leave nothing behind when it fails.
        reduce_memory: makes the next attempt use less memory; returns whether it could.
    """
    while True:
        try:
            return compute()
        except Exception as error:
            if not (is_out_of_memory(error) and reduce_memory()):
                raise
        # Only after the except block are the failed call's frames, and the tensors they refer to, freed.
        torch.cuda.empty_cache()


def split_batch_loss(
    summed_loss: SummedLoss, batch: Batch, num_splits: int, parameters: Sequence[Tensor], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns ``summed_loss(batch)``, computed from ``num_splits`` smaller batches one after the other.

    The gradients are computed here, together with the loss; the backward pass of the returned loss only hands them
    out. So whatever can run out of memory does so within this call, and leaves nothing behind.

    Args:
        summed_loss: returns the loss of a batch, summed over its tokens, and the number of these tokens.
        batch: the examples.
        num_splits: how many smaller batches to make of it, at most one per example.
        parameters: the trained weights.
        scale: factor (scalar) that keeps the gradients in range while they are computed in 16 bits.
    """
    losses, counts = [], []
    sums: list[Tensor | None] = [None] * len(parameters)
    for part in split_batch(batch, num_splits):
        loss, count = summed_loss(part)
        with torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(loss, parameters, scale.to(loss.dtype), allow_unused=True)
        for index, gradient in enumerate(gradients):
            previous = sums[index]
            sums[index] = gradient if previous is None or gradient is None else previous + gradient
        losses.append(loss.detach())
        counts.append(count)
    computed = [gradient for gradient in sums if gradient is not None]
    if computed:
        torch._foreach_div_(computed, scale)
    total = _PrecomputedGradients.apply(torch.stack(losses).sum(), sums, *parameters)
    return total, torch.stack(counts).sum()


class _PrecomputedGradients(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return (None, None, *(None if gradient is None else gradient * upstream for gradient in ctx.gradients))
