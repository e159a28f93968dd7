"""The private API of transformers that is used: each test fails when what it uses moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.integrations import sdpa_attention

from typst_lit._compat.transformers import (
    attention_implementation,
    cached_file_if_any,
    checkpoint_activations,
    forget_weight_conversions,
    never_use_gqa_kernels,
    repeat_kv,
)


@pytest.fixture(scope="module")
def model():
    config = Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def test_attention_implementation(model) -> None:
    assert attention_implementation(model) == "sdpa"
    model.set_attn_implementation("eager")
    assert attention_implementation(model) == "eager"
    model.set_attn_implementation("sdpa")


def test_checkpoint_activations(model) -> None:
    calls = []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(model.train(), {"use_reentrant": False})
    model(torch.zeros(1, 3, dtype=torch.long)).logits.sum().backward()
    handle.remove()
    assert len(calls) == 2


def test_repeat_kv() -> None:
    states = torch.randn(1, 2, 3, 4)
    assert repeat_kv(states, 3).equal(states.repeat_interleave(3, dim=1))


def test_attention_without_gqa_kernels_repeats_the_heads(monkeypatch) -> None:
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)  # restored afterwards
    options = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (options.append(k), attend(*a, **k))[1]
    )
    never_use_gqa_kernels()
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    sdpa_attention.sdpa_attention_forward(module, query, key, key, None)
    assert not options[0].get("enable_gqa")


def test_weight_conversions_are_forgotten(model) -> None:
    import transformers.modeling_utils
    from transformers import core_model_loading

    model._weight_conversions = ["a conversion"]
    forget_weight_conversions(model)
    assert model._weight_conversions is None
    sources = (transformers.modeling_utils.__file__, core_model_loading.__file__)
    assert any("_weight_conversions" in Path(source).read_text("utf-8") for source in sources)


def test_a_file_that_a_model_does_not_have(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert cached_file_if_any(str(tmp_path), "config.json", None) == tmp_path / "config.json"
    assert cached_file_if_any(str(tmp_path), "generation_config.json", None) is None
