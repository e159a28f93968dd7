"""A simulated step holds what the real one holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from typst_lit.model.activation_checkpointing import enable_activation_checkpointing, offload_activations
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.attention import use_packed_attention
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.kernels import fuse_lora_forward
from typst_lit.model.losses import linear_cross_entropy
from typst_lit.planning.fake_step import LiveMemory, simulated_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Qwen3 of 3 layers whose tensors are large enough to tell them from small change."""
    config = Qwen3Config(
        vocab_size=4000, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("planning") / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


def real_step(folder: str, adapter: LoraConfig, use_4bit: bool, policy: Any, rows: int, length: int) -> list[int]:
    base = PretrainedBackbone().load_model(folder, None, False, use_4bit, torch.device("cpu"))
    use_packed_attention(base)
    model = attach_adapter(base, adapter)
    fuse_lora_forward(model)
    enable_activation_checkpointing(base, policy)
    model.train()
    memory = LiveMemory()
    for tensor in (*model.parameters(), *model.buffers()):
        memory.add(tensor)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    ids = torch.zeros(rows, length, dtype=torch.long)
    found: list[int] = []
    with memory:
        for _ in range(2):
            found = [memory.now]
            memory.reset()
            with offload_activations(policy):
                hidden = base.get_decoder()(input_ids=ids, use_cache=False)[0]
            found.append(memory.most)
            memory.reset()
            count = rows * (length - 1)
            some = hidden[:, :-1].reshape(-1, hidden.shape[-1])
            del hidden
            loss = linear_cross_entropy(some, ids.reshape(-1)[:count], base.get_output_embeddings())
            del some
            found.append(memory.most)
            memory.reset()
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
            found.append(memory.most)
    return found


@pytest.mark.parametrize("use_4bit", [True, False])
@pytest.mark.parametrize("policy", ["full", "none", "selective"])
@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
def test_a_simulated_step_holds_what_the_real_one_holds(folder, use_4bit, policy, targets) -> None:
    adapter = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets)
    real = real_step(folder, adapter, use_4bit, policy, 2, 300)
    peaks = simulated_step(AutoConfig.from_pretrained(folder), adapter, use_4bit, policy, 2, 300, dtype=torch.float32)
    simulated = [peaks.static, peaks.forward, peaks.loss, peaks.backward]
    assert simulated == pytest.approx(real, rel=0.05)
