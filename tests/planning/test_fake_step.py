"""A fake step holds what the real one holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from typst_lit.data.batching import Batch, target_positions
from typst_lit.errors import UserError
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.forward import last_hidden_states
from typst_lit.model.losses import chunked_cross_entropy
from typst_lit.model.optimizers import build_optimizer
from typst_lit.model.preparation import TrainingSpec, prepare_for_training
from typst_lit.planning.fake_step import LiveMemory, measure_fake_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Qwen3 of 3 layers whose tensors are large compared with what is not counted."""
    config = Qwen3Config(
        vocab_size=4000, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("planning") / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


def real_step(
    directory: str, adapter: LoraConfig | None, use_4bit: bool, policy: Any, optimizer_setting: Any = "adamw"
) -> list[int]:
    base = PretrainedBackbone().load_model(directory, None, False, use_4bit, CPU)
    model: Any = base if adapter is None else attach_adapter(base, adapter)
    prepare_for_training(model, CPU, policy)
    model.train()
    memory = LiveMemory()
    for tensor in (*model.parameters(), *model.buffers()):
        memory.add(tensor)
    optimizer = build_optimizer(optimizer_setting, model.parameters(), CPU)
    ids = torch.zeros(2, 300, dtype=torch.long)
    batch = Batch(ids, ids, [300] * 2, [0] * 2, [""] * 2, target_positions=target_positions(ids))
    phases: list[int] = []
    with memory:
        for _ in range(2):
            memory.reset_peak()
            phases = [memory.current]
            hidden = last_hidden_states(model, batch, policy)
            phases.append(memory.reset_peak())
            loss, _ = chunked_cross_entropy(hidden, ids, model.get_output_embeddings(), batch.target_positions)
            del hidden
            phases.append(memory.reset_peak())
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()
            phases.append(memory.reset_peak())
    return phases


def fake_step(directory: str, policy: Any, **options: Any) -> list[int]:
    spec = TrainingSpec(AutoConfig.from_pretrained(directory), **{"dtype": torch.float32, **options})
    memory = measure_fake_step(spec, policy, 2, 300)
    return [memory.static, memory.forward, memory.loss, memory.backward]


@pytest.mark.parametrize("use_4bit", [True, False])
@pytest.mark.parametrize("policy", ["full", "none", "selective"])
@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
def test_a_fake_step_holds_what_the_real_one_holds(directory, use_4bit, policy, targets) -> None:
    adapter = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets)
    fake = fake_step(directory, policy, adapter=adapter, use_4bit=use_4bit)
    assert fake == pytest.approx(real_step(directory, adapter, use_4bit, policy), rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", torch.optim.SGD, torch.optim.Adagrad])
def test_the_state_of_the_configured_optimizer_is_counted(directory, optimizer) -> None:
    fake = fake_step(directory, "full", adapter=None, use_4bit=False, optimizer=optimizer)
    assert fake == pytest.approx(real_step(directory, None, False, "full", optimizer), rel=0.05)


def test_the_state_of_8_bit_optimizers_is_counted(directory) -> None:
    def static(optimizer: Any) -> int:
        return fake_step(directory, "full", adapter=None, use_4bit=False, optimizer=optimizer)[0]

    sizes = [parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(directory).parameters()]
    num_weights = sum(sizes)
    scales = 2 * 4 / 256 * num_weights
    without_state = static(torch.optim.SGD)
    assert static("adamw") - without_state == pytest.approx(8 * num_weights, rel=0.02)
    assert static("adamw_8bit") - without_state == pytest.approx(2 * num_weights + scales, rel=0.02)
    on_device = 2 * sum(size for size in sizes if size < 100_000)  # the rest is paged to the host's memory
    assert static("paged_adamw_8bit") - without_state == pytest.approx(on_device + scales, rel=0.02)


def test_an_optimizer_that_cannot_be_predicted_is_named(directory) -> None:
    with pytest.raises(UserError, match=r"model\.optimizer.*Adafactor can't be predicted"):
        fake_step(directory, "full", adapter=None, use_4bit=False, optimizer=torch.optim.Adafactor)


def test_liger_saves_the_temporaries_of_norms_and_gated_layers(directory) -> None:
    adapter = LoraConfig(r=8, target_modules="attention+mlp")
    plain = fake_step(directory, "none", adapter=adapter, use_4bit=False)
    liger = fake_step(directory, "none", adapter=adapter, use_4bit=False, liger=True)
    assert liger[0] == plain[0] and liger[1] < 0.95 * plain[1] and max(liger) < max(plain)
