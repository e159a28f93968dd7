"""Calls of PEFT that warn its users of its own code: a test fails when a filter is too little, or no longer needed."""

from __future__ import annotations

import warnings

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config

from typst_lit._compat.peft import add_adapter, load_saved_adapter


def build_model():
    config = Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def test_an_adapter_is_added_saved_and_loaded_without_a_warning(tmp_path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = add_adapter(build_model(), config)
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        loaded = load_saved_adapter(build_model(), tmp_path, "default", trainable=False)
        assert load_saved_adapter(loaded, tmp_path, "second", trainable=False) is loaded
    assert isinstance(loaded, PeftModel) and set(loaded.peft_config) == {"default", "second"}


def test_peft_itself_still_warns() -> None:
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        get_peft_model(build_model(), LoraConfig(r=2, target_modules=["q_proj"]))
