"""The private API of Liger that is used. It needs Triton, so this runs where there is a GPU."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, Qwen3Config

from typst_lit._compat.liger import use_liger_kernels


@pytest.mark.gpu
def test_kernels_are_put_into_a_model() -> None:
    pytest.importorskip("liger_kernel")
    config = Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert use_liger_kernels(model)
    assert "liger" in type(model.model.norm).forward.__module__ or "liger" in model.model.norm.forward.__module__
