"""Exports: each is loaded again, by transformers alone where that is possible."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from typst_lit.data.prompts import FormatPrompt
from typst_lit.exporting.gguf import pretokenizer_name, read_gguf, write_gguf
from typst_lit.exporting.targets import vllm_commands
from typst_lit.inference.generator import Generator

FIGURES = re.compile(r"loss ([\d.]+) before, ([\d.]+) after; (\d) of (\d) greedy")


def figures(text: str) -> tuple[float, float, int, int]:
    match = FIGURES.search(text)
    assert match, text
    return float(match[1]), float(match[2]), int(match[3]), int(match[4])


def test_merged_weights_generate_what_the_adapter_generates(run, able_adapter, able_pairs, tmp_path) -> None:
    records = tmp_path / "pairs.json"
    records.write_text(json.dumps(able_pairs))
    out = tmp_path / "merged"
    args = ["export", "--model", able_adapter, "--to", "merged", "--output", out, "--records", records]
    done = run(*args, "--dtype", "float32", "--shard-size", "8MB")
    assert done.status == 0, done.err
    before, after, same, count = figures(done.out)
    assert abs(before - after) < 1e-4 and same == count == 4
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "typst_lit.json"} <= names
    assert sum(name.endswith(".safetensors") for name in names) > 1 and not any(name.endswith(".bin") for name in names)
    plain = AutoModelForCausalLM.from_pretrained(out)  # by transformers alone, without PEFT and typst_lit
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert plain.generation_config.eos_token_id and not hasattr(plain, "peft_config")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "the prompt"}], tokenize=False)
    assert prompt == "the prompt"
    # The directory contains the template, so it is a base model that knows its prompts.
    again = run(
        "generate", "--base-model", out, "--input", records, "--no-4bit", "--temperature", 0, "--max-tokens", 64
    )
    assert again.status == 0, again.err
    refused = run(*args)
    assert refused.status == 1 and "not empty" in refused.err
    # A model without an adapter, as after full fine-tuning, is exported in the same way.
    full = run("export", "--model", out, "--to", "gguf", "--output", tmp_path / "full", "--records", records)
    assert full.status == 0, full.err
    assert figures(full.out)[2:] == (4, 4)


@pytest.mark.parametrize("weights_type", ["f16", "q8_0"])
def test_gguf_is_loaded_again_and_generates_the_same(run, able_adapter, able_pairs, tmp_path, weights_type) -> None:
    records = tmp_path / "pairs.json"
    records.write_text(json.dumps(able_pairs))
    out = tmp_path / "gguf"
    done = run(
        "export",
        "--model",
        able_adapter,
        "--to",
        "ollama",
        "--gguf",
        weights_type,
        "--output",
        out,
        "--records",
        records,
    )
    assert done.status == 0, done.err
    before, after, same, count = figures(done.out)
    assert abs(before - after) < (2e-3 if weights_type == "f16" else 3e-2)
    assert same >= count - 1
    modelfile = (out / "Modelfile").read_text()
    assert "FROM ./model.gguf" in modelfile and "{{ .Prompt }}" in modelfile and "num_ctx 8192" in modelfile
    size = (out / "model.gguf").stat().st_size
    assert (size < 9e6) == (weights_type == "q8_0")
    assert {path.name for path in out.iterdir()} == {"model.gguf", "Modelfile", ".typst-lit-manifest.jsonl"}


SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config, LlamaConfig])
def test_gguf_of_every_architecture_has_its_logits(tokenizer, tmp_path, config, tied) -> None:
    torch.manual_seed(0)
    extra = {"head_dim": 16} if config is not Qwen2Config else {}
    model: Any = AutoModelForCausalLM.from_config(config(**SHAPE, **extra, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "f16")
    ids = torch.arange(1, 60)[None]
    with torch.inference_mode():
        logits = read_gguf(tmp_path / "m.gguf", model.config)(ids).logits
        torch.testing.assert_close(logits, model(ids).logits, atol=5e-3, rtol=5e-2)
    import gguf

    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == pretokenizer_name(tokenizer)
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 512 and all(tokens[index] == token for token, index in tokenizer.get_vocab().items())


def test_vllm_commands_name_what_exists(run, able_adapter, tmp_path) -> None:
    done = run("export", "--model", able_adapter, "--to", "vllm", "--output", tmp_path / "out", "--no-check")
    assert done.status == 0, done.err
    assert f"vllm serve {tmp_path / 'out'} " in done.out
    assert "--enable-lora" not in done.out  # vLLM knows no built-in base model
    commands = vllm_commands(tmp_path, "Qwen/Qwen3-1.7B", able_adapter, 12, 8192)
    assert commands[1].startswith("vllm serve Qwen/Qwen3-1.7B --enable-lora") and "--max-lora-rank 16" in commands[1]
    assert (tmp_path / "out/model.safetensors").is_file()


def test_the_hub_directory_has_a_card_and_is_uploaded_only_on_request(run, able_adapter, tmp_path) -> None:
    out = tmp_path / "hub"
    args = ["export", "--model", able_adapter, "--to", "hub", "--output", out]
    early = run(*args, "--push", "--repo", "me/writer")
    assert early.status == 1 and "nothing is prepared" in early.err
    done = run(*args)
    assert done.status == 0 and "not uploaded" in done.out, done.err
    card = (out / "README.md").read_text()
    assert card.startswith("---") and "learning rate" in card and "val_loss" in card
    nameless = run(*args, "--push")
    assert nameless.status == 1 and "--repo" in nameless.err
    offline = run(*args, "--push", "--repo", "me/writer")  # the tests run without a network
    assert offline.status == 1 and "the upload failed" in offline.err and "Traceback" not in offline.err
    assert (out / "adapter_model.safetensors").is_file()


def test_what_cannot_be_exported_is_an_error(run, able_adapter, tmp_path) -> None:
    none = run("export", "--model", tmp_path, "--to", "merged", "--output", tmp_path / "out")
    assert none.status == 1 and "contains no adapter" in none.err
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"input": {"a": 1}, "output": "x"}]))
    fields = run("export", "--model", able_adapter, "--to", "merged", "--output", tmp_path / "out", "--records", other)
    assert fields.status == 1 and "--no-check" in fields.err and not (tmp_path / "out").exists()


def test_an_exported_model_brings_its_prompt_template(run, able_adapter, tmp_path) -> None:
    out = tmp_path / "merged"
    assert run("export", "--model", able_adapter, "--to", "merged", "--output", out, "--no-check").status == 0
    about = {"template": FormatPrompt("{title}: {body}\n", numbers=[]).describe()}
    (out / "typst_lit.json").write_text(json.dumps(about))
    generator = Generator.load(None, str(out), use_4bit=False, compile=False)
    assert generator.templates[None].render({"title": "A", "body": "b"}) == "A: b\n"
