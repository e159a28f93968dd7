"""Packed sequences: each as if it were alone, with the model's own kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from typst_lit.data.batching import PackedSequences
from typst_lit.model.activation_checkpointing import enable_activation_checkpointing
from typst_lit.model.attention import NAME, has_no_cross_contamination, use_packed_attention

SHAPE = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = [
    Qwen3Config(**SHAPE),
    Qwen2Config(**SHAPE),
    LlamaConfig(**SHAPE),
    MistralConfig(**SHAPE, sliding_window=4),
    Gemma3TextConfig(**SHAPE, sliding_window=4, head_dim=16),
]


def build(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).train()


def hidden(model: Any, ids: torch.Tensor, **packed: Any) -> torch.Tensor:
    return model.get_decoder()(input_ids=ids, use_cache=False, **packed)[0]


def packed(lengths: list[int]) -> dict[str, Any]:
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    return {
        "position_ids": position_ids,
        "packed_sequences": PackedSequences(offsets, torch.tensor(offsets, dtype=torch.int32), max(lengths)),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_packed_sequences_have_the_states_and_gradients_they_have_alone(config, checkpointing) -> None:
    model = build(config)
    if checkpointing:
        enable_activation_checkpointing(model, "full")
    sequences = [torch.randint(1, 200, (1, length)) for length in (9, 1, 14)]
    expected = torch.cat([hidden(model, ids) for ids in sequences], 1)  # transformers' own attention
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    states = hidden(model, torch.cat(sequences, 1), **packed([9, 1, 14]))
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    (states * weights).sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_cross_contamination_is_detected() -> None:
    model = build(Qwen3Config(**SHAPE))
    use_packed_attention(model)
    assert has_no_cross_contamination(model)
    layer = model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, packed_sequences=None, **kwargs: forward(*args, **kwargs)  # does not pass it on
    assert not has_no_cross_contamination(model)


def test_no_length_x_length_scores_are_held() -> None:
    """4,096 positions: the scores of one layer would be 64 MiB per head in fp32."""
    model = build(Qwen3Config(**{**SHAPE, "num_hidden_layers": 1}))
    use_packed_attention(model)
    with torch.profiler.profile(profile_memory=True) as profile:
        hidden(model, torch.randint(1, 200, (1, 4096))).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 64 * 2**20
