from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from typst_lit.data.encoding import IGNORE_INDEX, Encoder
from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.exporting import Comparison, mean_loss
from typst_lit.exporting.comparison import load_pairs
from typst_lit.model.adapters import attach_adapter


def reference_loss(model, encoder: Encoder, pairs) -> float:
    """The mean loss by transformers' own loss function."""
    encoded = encoder.encode([pair["input"] for pair in pairs], [pair["output"] for pair in pairs])
    total, num_tokens = 0.0, 0
    for ids, prompt_length in zip(encoded["input_ids"], encoded["prompt_length"], strict=True):
        labels = [IGNORE_INDEX] * prompt_length + ids[prompt_length:]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, num_tokens = total + float(loss) * (len(ids) - prompt_length), num_tokens + len(ids) - prompt_length
    return total / num_tokens


@pytest.mark.parametrize("with_adapter", [False, True])
def test_mean_loss_agrees_with_transformers(tiny_model, tokenizer, pairs, with_adapter) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    if with_adapter:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        base_loss = mean_loss(model, Encoder(tokenizer, ReportPrompt()), pairs[:3])
        model = attach_adapter(model, config).eval()
    loss = mean_loss(model, Encoder(tokenizer, ReportPrompt()), pairs[:3])
    assert loss == pytest.approx(reference_loss(model, Encoder(tokenizer, ReportPrompt()), pairs[:3]), abs=1e-4)
    assert not with_adapter or loss != pytest.approx(base_loss, abs=1e-4)


def test_no_pairs_have_no_loss(tiny_model, tokenizer) -> None:
    assert mean_loss(AutoModelForCausalLM.from_pretrained(tiny_model), Encoder(tokenizer, ReportPrompt()), []) == 0


def test_pairs_come_from_the_samples_or_from_a_file(tmp_path, pairs) -> None:
    assert len(load_pairs(None, ReportPrompt())) == 4
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(pairs[:2]))
    assert [pair["output"] for pair in load_pairs(str(path), ReportPrompt())] == [pair["output"] for pair in pairs[:2]]
    path.write_text(json.dumps([pairs[0], {"input": {"title": "No other field"}, "output": "= A"}]))
    with pytest.raises(UserError, match="record 1") as error:
        load_pairs(str(path), ReportPrompt())
    assert "`check=false`" in error.value.hint


def test_a_comparison_allows_what_rounding_explains() -> None:
    Comparison(loss_before=0.5, loss_after=0.51, num_same=3, num_documents=4).check("f16")
    with pytest.raises(UserError, match="not the trained model"):
        Comparison(loss_before=0.5, loss_after=0.51, num_same=4, num_documents=4).check("float32")
