"""Attention that never holds length x length scores, and keeps packed documents apart.

`use_packed_attention` puts it into a model by transformers' own registry. It takes over where every position sees just
those before it in its document: the whole of training and the prompts of generation. What is left, single steps with a
cache and padded batches, goes to transformers' own function.

Where the documents of a packed row are is told by `PackedSequences`, which transformers hands through from the model's
forward, beside ``position_ids`` that begin anew with each.
"""

from __future__ import annotations

import inspect
import logging
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from typst_lit.data.batching import PackedSequences

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # no CUDA build has it not; other builds may
    varlen_attn = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
NAME = "typst_lit"
VARLEN_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
FUSED_KERNELS = {  # operators that hold no length x length scores
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash for CPUs",
    "torch_attn::_varlen_attn": "varlen flash",
}
PLAIN = "plain, which holds length x length scores"
FIRST_WITH_FLASH = (8, 0)  # compute capability of Ampere: below it, SDPA with grouped heads holds all scores


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes a model's layers use `attention`, if they are of those that leave the choice."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(NAME)


def has_no_cross_contamination(model: PreTrainedModel) -> bool:
    """Returns whether packed documents can't see each other in a model: another first one must change nothing."""
    device = next(model.parameters()).device
    offsets = [0, 5, 12]
    packed_sequences = PackedSequences(offsets, torch.tensor(offsets, dtype=torch.int32, device=device), 7)
    places = torch.cat([torch.arange(5), torch.arange(7)])[None].to(device)
    ids = torch.arange(1, 13, device=device)[None]
    other = ids.clone()
    other[:, :5] += 20
    training = model.training
    model.eval()
    with torch.inference_mode():
        one, two = (
            model.get_decoder()(
                input_ids=each, position_ids=places, packed_sequences=packed_sequences, use_cache=False
            )[0][:, 5:]
            for each in (ids, other)
        )
    model.train(training)
    return torch.equal(one, two)


def attention_backend(
    device: torch.device, dtype: torch.dtype, heads: int = 16, groups: int = 8, width: int = 128, packed: bool = False
) -> str:
    """Returns which kernel attention gets on a device, found by running it on a short sequence.

    Args:
        device: where.
        dtype: that of queries, keys and values.
        heads: number of query heads.
        groups: number of key and value heads.
        width: of a head.
        packed: whether two documents share the sequence.
    """
    query, key, value = (
        torch.zeros(1, count, 32, width, device=device, dtype=dtype, requires_grad=True)
        for count in (heads, groups, groups)
    )
    packed_sequences = PackedSequences([0, 16, 32], torch.tensor([0, 16, 32], dtype=torch.int32, device=device), 16)
    with Operators() as seen:
        attention(nn.Module(), query, key, value, None, packed_sequences=packed_sequences if packed else None)
    return next((FUSED_KERNELS[name] for name in seen.names if name in FUSED_KERNELS), PLAIN)


class Operators(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


def _has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    return (
        varlen_attn is not None
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= FIRST_WITH_FLASH
        and dtype in (torch.float16, torch.bfloat16)
    )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_sequences: PackedSequences | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Returns the attention of queries (B, H, T, D) to keys and values (B, K, T', D) as (B, T, H, D).

    Without a mask, each position sees those before it, in its own document and within the sliding window if there is
    one. The signature is that of transformers' attention functions.
    """
    if attention_mask is not None or query.shape[2] != key.shape[2] or kwargs.get("is_causal") is False:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    device = query.device.type
    if torch.is_autocast_enabled(device):  # fp32 norms and rotations leave queries and keys in fp32
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = sliding_window if sliding_window and sliding_window < query.shape[2] else None
    if packed_sequences and _has_varlen(query.device, query.dtype):
        return _varlen(query, key, value, packed_sequences, scaling, window), None
    grouped = query.shape[1] != key.shape[1]
    if grouped and not (query.is_cuda and torch.cuda.get_device_capability(query.device) >= FIRST_WITH_FLASH):
        groups = query.shape[1] // key.shape[1]
        key, value, grouped = repeat_kv(key, groups), repeat_kv(value, groups), False
    offsets = packed_sequences.offsets if packed_sequences else [0, query.shape[2]]
    parts = [
        _causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], dropout, scaling, window, grouped)
        for a, b in pairwise(offsets)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).transpose(1, 2).contiguous(), None


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    grouped: bool,
) -> Tensor:
    length = query.shape[2]
    mask = None
    if window and window < length:
        place = torch.arange(length, device=query.device)
        distance = place[:, None] - place
        mask = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed_sequences: PackedSequences,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    options: dict[str, Any] = {"scale": scaling, "window_size": (window - 1 if window else -1, 0)}
    if VARLEN_GQA:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    cu_seqlens, max_seqlen = packed_sequences.cu_seqlens, packed_sequences.max_seqlen
    output: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    result: Tensor = output[None]
    return result


def _mask(*args: Any, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
    """Returns no mask where `attention` needs none: whatever position_ids say, it is told where documents begin."""
    if attention_mask is None and q_length == kv_length:
        return None
    options = {"q_length": q_length, "kv_length": kv_length, "attention_mask": attention_mask, **kwargs}
    return sdpa_mask(*args, **options)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
