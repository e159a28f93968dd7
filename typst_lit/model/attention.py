"""Attention that never holds length x length scores, without cross-contamination of packed sequences.

`use_packed_attention` registers it with transformers' own registry. It handles plain causal attention: all of training,
and the prompts of generation. The rest, single decoding steps with a KV cache and padded batches, goes to transformers'
own function.

`PackedSequences` says where the sequences of a packed row are. transformers passes it on from the model's forward,
along with ``position_ids`` that restart at 0 with each sequence.
"""

from __future__ import annotations

import inspect
import logging
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from typst_lit._compat.torch import TorchDispatchMode
from typst_lit._compat.transformers import attention_implementation, repeat_kv
from typst_lit.data.batching import PackedSequences

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # every CUDA build has it; other builds may not
    varlen_attn = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
NAME = "typst_lit"
VARLEN_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
FUSED_KERNELS = {  # the operators that hold no length x length scores
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_efficient_attention": "memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash for CPUs",
    "torch_attn::_varlen_attn": "varlen flash",
}
MATH = "math, which holds length x length scores"
MIN_FLASH_CAPABILITY = (8, 0)  # of Ampere: below it, SDPA with grouped heads takes the math kernel


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes a model's layers use `attention`, if they can use different attention functions."""
    if attention_implementation(model) == "sdpa":
        model.set_attn_implementation(NAME)


def has_no_cross_contamination(model: PreTrainedModel) -> bool:
    """Returns whether packed sequences can't see each other: changing the first one must not change the second."""
    device = next(model.parameters()).device
    offsets = [0, 5, 12]
    packed_sequences = PackedSequences(offsets, torch.tensor(offsets, dtype=torch.int32, device=device), 7)
    position_ids = torch.cat([torch.arange(5), torch.arange(7)])[None].to(device)
    input_ids = torch.arange(1, 13, device=device)[None]
    changed_ids = input_ids.clone()
    changed_ids[:, :5] += 20
    training = model.training
    model.eval()
    with torch.inference_mode():
        hidden, changed = (
            model.get_decoder()(
                input_ids=ids, position_ids=position_ids, packed_sequences=packed_sequences, use_cache=False
            )[0][:, 5:]
            for ids in (input_ids, changed_ids)
        )
    model.train(training)
    return torch.equal(hidden, changed)


def attention_backend(
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int = 16,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    packed: bool = False,
) -> str:
    """Returns the kernel that attention uses on a device, found by running it on a short sequence.

    >>> attention_backend(torch.device("cpu"), torch.float32)
    'flash for CPUs'

    Args:
        device: where it runs.
        dtype: of queries, keys and values.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads.
        head_dim: features per head.
        packed: whether two sequences share the row.
    """
    query, key, value = (
        torch.zeros(1, count, 32, head_dim, device=device, dtype=dtype, requires_grad=True)
        for count in (num_heads, num_kv_heads, num_kv_heads)
    )
    packed_sequences = PackedSequences([0, 16, 32], torch.tensor([0, 16, 32], dtype=torch.int32, device=device), 16)
    with OperatorRecorder() as recorder:
        attention(nn.Module(), query, key, value, None, packed_sequences=packed_sequences if packed else None)
    return next((FUSED_KERNELS[name] for name in recorder.names if name in FUSED_KERNELS), MATH)


class OperatorRecorder(TorchDispatchMode):
    """Records the names of the operators that run, without their overload: ``aten::add``."""

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
        and torch.cuda.get_device_capability(device) >= MIN_FLASH_CAPABILITY
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

    Without a mask, each position sees those up to itself in its own sequence, and in the sliding window if there is
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
    if grouped and not (query.is_cuda and torch.cuda.get_device_capability(query.device) >= MIN_FLASH_CAPABILITY):
        num_repeats = query.shape[1] // key.shape[1]
        key, value, grouped = repeat_kv(key, num_repeats), repeat_kv(value, num_repeats), False
    offsets = packed_sequences.offsets if packed_sequences else [0, query.shape[2]]
    outputs = [
        _causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], dropout, scaling, window, grouped)
        for a, b in pairwise(offsets)
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return output.transpose(1, 2).contiguous(), None


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
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position
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
        num_repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, num_repeats), repeat_kv(value, num_repeats)
    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    cu_seqlens, max_seqlen = packed_sequences.cu_seqlens, packed_sequences.max_seqlen
    output: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    result: Tensor = output[None]
    return result


def _mask(*args: Any, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
    """Returns no mask where `attention` needs none: `PackedSequences` replaces what position_ids would imply."""
    if attention_mask is None and q_length == kv_length:
        return None
    options = {"q_length": q_length, "kv_length": kv_length, "attention_mask": attention_mask, **kwargs}
    return sdpa_mask(*args, **options)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
