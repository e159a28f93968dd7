"""Packed documents: each as if it were alone, with the model's own kernels."""

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
from typst_lit.model import attention
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


def made(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).train()


def hidden(model: Any, ids: torch.Tensor, **packed: Any) -> torch.Tensor:
    return model.get_decoder()(input_ids=ids, use_cache=False, **packed)[0]


def packed(lengths: list[int]) -> dict[str, Any]:
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    return {
        "position_ids": places,
        "packed_sequences": PackedSequences(ends, torch.tensor(ends, dtype=torch.int32), max(lengths)),
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_packed_documents_have_the_states_and_gradients_they_have_alone(config, checkpointing) -> None:
    model = made(config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    documents = [torch.randint(1, 200, (1, length)) for length in (9, 1, 14)]
    expected = torch.cat([hidden(model, ids) for ids in documents], 1)  # transformers' own attention
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    states = hidden(model, torch.cat(documents, 1), **packed([9, 1, 14]))
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    (states * weights).sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_a_model_that_lets_documents_see_each_other_is_found_out(monkeypatch) -> None:
    model = made(Qwen3Config(**SHAPE))
    use_packed_attention(model)
    assert has_no_cross_contamination(model)
    honest = attention._causal
    monkeypatch.setattr(attention, "_causal", lambda query, *rest: honest(query, *rest))
    layer = model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, packed_sequences=None, **kwargs: forward(*args, **kwargs)  # forgets to hand it on
    assert not has_no_cross_contamination(model)


def test_no_scores_of_length_by_length_are_held() -> None:
    """4,096 positions: scores of one layer would be 64 MiB a head in fp32."""
    model = made(Qwen3Config(**{**SHAPE, "num_hidden_layers": 1}))
    use_packed_attention(model)
    with torch.profiler.profile(profile_memory=True) as profile:
        hidden(model, torch.randint(1, 200, (1, 4096))).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.events()) < 64 * 2**20
