"""Base models of other families: the same command line fits an adapter on each, in 4 bits, and generates with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from tests.conftest import SAMPLES

SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2.5, untied": Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "smollm2": LlamaConfig(**{**SHAPE, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("packing", [False, True])
def test_every_family_is_fitted_and_generates(run, tokenizer, tmp_path, family, packing) -> None:
    torch.manual_seed(0)
    base = tmp_path / "base"
    model: Any = AutoModelForCausalLM.from_config(FAMILIES[family])
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    fit = run(
        "fit", "--data.path", SAMPLES, "--model.base_model", base, "--run_dir", tmp_path / "run",
        "--model.adapter.target_modules", "attention+mlp", "--trainer.max_epochs", 2, "--model.warmup_steps", 1,
        "--trainer.accumulate_grad_batches", 1, "--trainer.accelerator", "cpu", "--eval.every_n_epochs", 0,
        "--model.learning_rate", 3e-3, "--data.packing", json.dumps(packing),
    )  # fmt: skip
    assert fit.status == 0, fit.err
    points = [line.split() for line in fit.err.splitlines() if line.startswith("   ") and line.count(".") == 3]
    losses = [float(point[1]) for point in points]
    assert len(losses) == 2 and losses[1] < losses[0]
    generated = run("generate", "--model", tmp_path / "run", "--input", SAMPLES, "--max-tokens", 5, "--no-compile")
    assert generated.status == 0 and len(json.loads(generated.out)) == 12, generated.err
