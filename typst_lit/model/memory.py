"""What is done about memory: freed blocks go back to the system, and a batch that does not fit is run in parts."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from typst_lit.data.batching import Batch, split_batch

SummedLoss = Callable[[Batch], tuple[Tensor, Tensor]]


def trim_freed_memory(layers: Iterable[nn.Module]) -> None:
    """Has the C library, where it is glibc, return to the system what is free, twice a layer in training.

    By itself it keeps freed blocks for later. The tensors of a layer have many sizes and leave in another order than
    they came, so what it keeps is mostly of no use: more than half of a step's memory on a CPU. The gaps come to be
    within a layer, so it is after its attention and after its MLP that they are returned.

    Args:
        layers: those of the decoder.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim = ctypes.CDLL(None).malloc_trim

    @torch.compiler.disable
    def return_free(block: nn.Module, *passed: Any) -> None:
        if block.training:
            trim(0)

    for layer in layers:
        for name, block in layer.named_children():
            if name in ("self_attn", "mlp"):
                block.register_forward_hook(return_free)


def split_batch_loss(
    summed_loss: SummedLoss, batch: Batch, parts: int, parameters: Sequence[Tensor], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what ``summed_loss`` returns for a batch, computed from so many parts of it, one after the other.

    The gradients are computed here, with the loss, and what follows only hands them out: so whatever can run out of
    memory does so within this call, and leaves nothing behind.

    Args:
        summed_loss: returns the loss of a batch, summed over its tokens, and their count.
        batch: the examples.
        parts: how many parts they are run in.
        parameters: the weights that are trained.
        scale: factor (scalar) for the gradients while they are computed in 16 bits.
    """
    losses, counts = [], []
    gradients: list[Tensor | None] = [None] * len(parameters)
    for part in split_batch(batch, parts):
        loss, count = summed_loss(part)
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, parameters, scale.to(loss.dtype), allow_unused=True)
        for place, gradient in enumerate(found):
            before = gradients[place]
            gradients[place] = gradient if before is None or gradient is None else before + gradient
        losses.append(loss.detach())
        counts.append(count)
    known = [gradient for gradient in gradients if gradient is not None]
    if known:
        torch._foreach_div_(known, scale)
    total = _KnownGradients.apply(torch.stack(losses).sum(), gradients, *parameters)
    return total, torch.stack(counts).sum()


class _KnownGradients(torch.autograd.Function):
    """A loss whose gradients have been computed."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return (None, None, *(None if gradient is None else gradient * upstream for gradient in ctx.gradients))


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an exception, or what caused it, means that memory ran out, on the GPU or the CPU."""
    chain: BaseException | None = error
    signs = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory")
    while chain is not None:
        if isinstance(chain, torch.OutOfMemoryError | MemoryError) or any(sign in str(chain) for sign in signs):
            return True
        chain = chain.__cause__ or chain.__context__
    return False
