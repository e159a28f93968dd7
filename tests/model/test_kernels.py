"""Replaced forward passes return what the original ones returned."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import LoraConfig

from typst_lit.errors import UserError
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.kernels import FUSED_CLASSES, fuse_lora_forward, use_liger


@pytest.mark.parametrize("use_4bit", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"lora_bias": True}])
def test_fused_lora_equals_lora(tiny_model, use_4bit, autocast, variant) -> None:
    base = PretrainedBackbone().load_model(str(tiny_model), None, False, use_4bit, torch.device("cpu"))
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.1, **variant)
    model = attach_adapter(base, config).train()
    ids = torch.randint(0, 200, (2, 11))

    def logits_and_gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(ids).logits.float()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [logits.detach(), *torch.autograd.grad(logits.square().mean(), trained)]

    expected = logits_and_gradients()
    fuse_lora_forward(model)
    fused = [module for module in model.modules() if type(module) in FUSED_CLASSES.values()]
    assert len(fused) == 14
    rounding = 0.1 if autocast else 1e-5
    for actual, reference in zip(logits_and_gradients(), expected, strict=True):
        assert (actual - reference).norm() <= rounding * reference.norm()
    with model.disable_adapter():
        plain = model(ids).logits
    model.eval()
    assert not torch.allclose(plain, model(ids).logits)


def test_fused_lora_holds_fewer_tensors_of_the_outputs_size() -> None:
    layer = torch.nn.ModuleDict({"up": torch.nn.Linear(8, 40_000, bias=False)})
    from peft import get_peft_model

    model = get_peft_model(layer, LoraConfig(r=4, target_modules=["up"]))
    rows = torch.randn(100, 8)

    def peak() -> int:
        from typst_lit.planning.fake_step import LiveMemory

        with LiveMemory() as memory:
            model.base_model.model["up"](rows)
        return memory.peak

    before = peak()
    fuse_lora_forward(model)
    assert peak() < 0.7 * before


def test_without_liger_the_message_says_what_it_needs(tiny_model) -> None:
    if importlib.util.find_spec("liger_kernel") and importlib.util.find_spec("triton"):
        pytest.skip("Liger is installed")
    base = PretrainedBackbone().load_model(str(tiny_model), None, False, False, torch.device("cpu"))
    with pytest.raises(UserError, match=r"pip install liger-kernel"):
        use_liger(base)
