"""What was trained, in other forms: each is opened again, by transformers alone where it can be."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from typst_lit.data.prompts import FormatPrompt
from typst_lit.exporting.gguf import read_gguf, splitter_of, write_gguf
from typst_lit.exporting.targets import vllm_commands
from typst_lit.inference.generator import Generator

FIGURES = re.compile(r"loss ([\d.]+) before, ([\d.]+) after; (\d) of (\d) greedy")


def figures(text: str) -> tuple[float, float, int, int]:
    found = FIGURES.search(text)
    assert found, text
    return float(found[1]), float(found[2]), int(found[3]), int(found[4])


def test_merged_weights_do_what_the_adapter_did(run, able_adapter, able_pairs, tmp_path) -> None:
    records = tmp_path / "pairs.json"
    records.write_text(json.dumps(able_pairs))
    out = tmp_path / "merged"
    args = ["export", "--model", able_adapter, "--to", "merged", "--output", out, "--records", records]
    done = run(*args, "--dtype", "float32", "--shard-size", "8MB")
    assert done.status == 0, done.err
    before, after, same, count = figures(done.out)
    assert abs(before - after) < 1e-4 and same == count == 4
    held = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "typst_lit.json"} <= held
    assert sum(name.endswith(".safetensors") for name in held) > 1 and not any(name.endswith(".bin") for name in held)
    plain = AutoModelForCausalLM.from_pretrained(out)  # by transformers alone, no PEFT and none of ours
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert plain.generation_config.eos_token_id and not hasattr(plain, "peft_config")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "the prompt"}], tokenize=False)
    assert asked == "the prompt"
    # The template goes along, so the folder is a base model that knows its prompts.
    again = run(
        "generate", "--base-model", out, "--input", records, "--no-4bit", "--temperature", 0, "--max-tokens", 64
    )
    assert again.status == 0, again.err
    refused = run(*args)
    assert refused.status == 1 and "not empty" in refused.err
    # A model without an adapter, as one that was trained whole, is exported like one with.
    whole = run("export", "--model", out, "--to", "gguf", "--output", tmp_path / "whole", "--records", records)
    assert whole.status == 0, whole.err
    assert figures(whole.out)[2:] == (4, 4)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_gguf_is_opened_again_and_says_the_same(run, able_adapter, able_pairs, tmp_path, kind) -> None:
    records = tmp_path / "pairs.json"
    records.write_text(json.dumps(able_pairs))
    out = tmp_path / "gguf"
    done = run(
        "export", "--model", able_adapter, "--to", "ollama", "--gguf", kind, "--output", out, "--records", records
    )
    assert done.status == 0, done.err
    before, after, same, count = figures(done.out)
    assert abs(before - after) < (2e-3 if kind == "f16" else 3e-2)
    assert same >= count - 1
    written = (out / "Modelfile").read_text()
    assert "FROM ./model.gguf" in written and "{{ .Prompt }}" in written and "num_ctx 8192" in written
    size = (out / "model.gguf").stat().st_size
    assert (size < 9e6) == (kind == "q8_0")
    assert {path.name for path in out.iterdir()} == {"model.gguf", "Modelfile"}


SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_gguf_of_every_architecture_has_its_logits(tokenizer, tmp_path, config, tied) -> None:
    torch.manual_seed(0)
    more = {"head_dim": 16} if config is not Qwen2Config else {}
    model: Any = AutoModelForCausalLM.from_config(config(**SHAPE, **more, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "f16")
    ids = torch.arange(1, 60)[None]
    with torch.inference_mode():
        read = read_gguf(tmp_path / "m.gguf", model.config)(ids).logits
        torch.testing.assert_close(read, model(ids).logits, atol=5e-3, rtol=5e-2)
    import gguf

    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == splitter_of(tokenizer)
    words = fields["tokenizer.ggml.tokens"].contents()
    assert len(words) == 512 and all(words[index] == word for word, index in tokenizer.get_vocab().items())


def test_commands_for_vllm_name_what_is_there(run, able_adapter, tmp_path) -> None:
    done = run("export", "--model", able_adapter, "--to", "vllm", "--output", tmp_path / "out", "--no-check")
    assert done.status == 0, done.err
    assert f"vllm serve {tmp_path / 'out'} " in done.out
    assert "--enable-lora" not in done.out  # vLLM knows no built-in base model
    commands = vllm_commands(tmp_path, "Qwen/Qwen3-1.7B", able_adapter, 12, 8192)
    assert commands[1].startswith("vllm serve Qwen/Qwen3-1.7B --enable-lora") and "--max-lora-rank 16" in commands[1]
    assert (tmp_path / "out/model.safetensors").is_file()


def test_the_hub_gets_a_card_and_only_when_asked(run, able_adapter, tmp_path) -> None:
    out = tmp_path / "hub"
    args = ["export", "--model", able_adapter, "--to", "hub", "--output", out]
    early = run(*args, "--push", "--repo", "me/writer")
    assert early.status == 1 and "not prepared" in early.err
    done = run(*args)
    assert done.status == 0 and "not uploaded" in done.out, done.err
    card = (out / "README.md").read_text()
    assert card.startswith("---") and "learning rate" in card and "val_loss" in card
    nameless = run(*args, "--push")
    assert nameless.status == 1 and "--repo" in nameless.err
    offline = run(*args, "--push", "--repo", "me/writer")  # the tests run without a network
    assert offline.status == 1 and "not written to" in offline.err and "Traceback" not in offline.err
    assert (out / "adapter_model.safetensors").is_file()


def test_what_cannot_be_exported_is_said(run, able_adapter, tmp_path) -> None:
    none = run("export", "--model", tmp_path, "--to", "merged", "--output", tmp_path / "out")
    assert none.status == 1 and "no adapter there" in none.err
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"input": {"a": 1}, "output": "x"}]))
    fields = run("export", "--model", able_adapter, "--to", "merged", "--output", tmp_path / "out", "--records", other)
    assert fields.status == 1 and "--no-check" in fields.err and not (tmp_path / "out").exists()


def test_a_base_model_of_its_own_brings_its_prompt(run, able_adapter, tmp_path) -> None:
    out = tmp_path / "merged"
    assert run("export", "--model", able_adapter, "--to", "merged", "--output", out, "--no-check").status == 0
    about = {"template": FormatPrompt("{title}: {body}\n", numbers=[]).describe()}
    (out / "typst_lit.json").write_text(json.dumps(about))
    generator = Generator.load(None, str(out), use_4bit=False, compile=False)
    assert generator.templates[None].render({"title": "A", "body": "b"}) == "A: b\n"
