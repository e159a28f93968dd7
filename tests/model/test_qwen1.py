"""First-generation Qwen: its forward pass, implemented here, against the loaded model; its tokenizer and adapters."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.qwen1 import SPECIAL_TOKENS, convert_tiktoken

HIDDEN, HEADS, LAYERS, FFN, BASE = 64, 4, 3, 160, 10000.0
CPU = torch.device("cpu")


def vocabulary() -> list[bytes]:
    """The 256 bytes and some merges, ranked as a training would."""
    words = [b" th", b"th", b"in", b" in", b"er", b" the", b"ing", b"on", b" a", b"at", b"\n\n", b"  ", b"    "]
    known = [bytes([byte]) for byte in range(256)]
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.append(word[:end])
    return known


def weights(vocab: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random_tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.15

    tensors = {
        "transformer.wte.weight": random_tensor(vocab, HIDDEN),
        "transformer.ln_f.weight": random_tensor(HIDDEN),
        "lm_head.weight": random_tensor(vocab, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        tensors |= {
            f"{at}.ln_1.weight": random_tensor(HIDDEN),
            f"{at}.ln_2.weight": random_tensor(HIDDEN),
            f"{at}.attn.c_attn.weight": random_tensor(3 * HIDDEN, HIDDEN),
            f"{at}.attn.c_attn.bias": random_tensor(3 * HIDDEN),
            f"{at}.attn.c_proj.weight": random_tensor(HIDDEN, HIDDEN),
            f"{at}.mlp.w1.weight": random_tensor(FFN, HIDDEN),
            f"{at}.mlp.w2.weight": random_tensor(FFN, HIDDEN),
            f"{at}.mlp.c_proj.weight": random_tensor(HIDDEN, FFN),
        }
    # Norms are about 1; and the values are those of 16 bits, as in the real checkpoint.
    return {name: (value + ("ln_" in name)).bfloat16().float() for name, value in tensors.items()}


def original_forward(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The logits (T, V) of ids (T), as the first generation computes them."""

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * scale

    width = HIDDEN // HEADS
    angles = torch.arange(len(ids))[:, None] / BASE ** (torch.arange(0, width, 2) / width)
    turn = torch.cat([angles, angles], -1)

    def rotated(x: Tensor) -> Tensor:  # (T, H, D): the half-rotation
        one, two = x.chunk(2, -1)
        return x * turn.cos()[:, None] + torch.cat([-two, one], -1) * turn.sin()[:, None]

    x = w["transformer.wte.weight"][ids]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        inner = norm(x, w[f"{at}.ln_1.weight"])
        joined = inner @ w[f"{at}.attn.c_attn.weight"].T + w[f"{at}.attn.c_attn.bias"]
        query, key, value = (part.view(len(ids), HEADS, width) for part in joined.split(HIDDEN, -1))
        scores = torch.einsum("qhd,khd->hqk", rotated(query), rotated(key)) / math.sqrt(width)
        future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        seen = scores.masked_fill(future, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khd->qhd", seen, value).reshape(len(ids), HIDDEN) @ w[f"{at}.attn.c_proj.weight"].T
        inner = norm(x, w[f"{at}.ln_2.weight"])
        gated = (inner @ w[f"{at}.mlp.w1.weight"].T) * F.silu(inner @ w[f"{at}.mlp.w2.weight"].T)
        x = x + gated @ w[f"{at}.mlp.c_proj.weight"].T
    return norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T


@pytest.fixture(scope="module")
def first_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in two shards, under the names that the real one has."""
    folder = tmp_path_factory.mktemp("first") / "Qwen-1_8B"
    folder.mkdir()
    tokens = vocabulary()
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    vocab = len(tokens) + len(SPECIAL_TOKENS)
    config = {
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": HIDDEN, "intermediate_size": 2 * FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "kv_channels": HIDDEN // HEADS, "seq_length": 8192,
        "layer_norm_epsilon": 1e-6, "rotary_emb_base": BASE, "vocab_size": vocab, "tie_word_embeddings": False,
        "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "raw", "eos_token_id": len(tokens)}))
    tensors = weights(vocab)
    shards = [dict(list(tensors.items())[:12]), dict(list(tensors.items())[12:])]
    index = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def loaded(folder: Path, use_4bit: bool = False) -> Any:
    return PretrainedBackbone().load_model(str(folder), None, False, use_4bit, CPU).eval()


@pytest.mark.parametrize("length", [1, 7, 64, 300])
def test_the_logits_are_those_of_the_original(first_folder, length) -> None:
    model = loaded(first_folder)
    assert type(model) is Qwen2ForCausalLM
    vocab = model.config.vocab_size
    ids = torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(length))
    expected = original_forward(weights(vocab), ids)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids[None]).logits[0], expected, atol=1e-4, rtol=1e-4)
        left = torch.cat([torch.zeros(5, dtype=torch.long), ids])[None]  # padded
        mask = torch.ones_like(left)
        mask[:, :5] = 0
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = model(left, attention_mask=mask, position_ids=position_ids).logits[0, 5:]
        torch.testing.assert_close(padded, expected, atol=1e-4, rtol=1e-4)


def test_gate_and_up_are_not_swapped() -> None:
    """The test above can fail: it does with the two exchanged."""
    changed = weights(500)
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}.mlp"
        changed[f"{at}.w1.weight"], changed[f"{at}.w2.weight"] = changed[f"{at}.w2.weight"], changed[f"{at}.w1.weight"]
    ids = torch.arange(20)
    assert (original_forward(changed, ids) - original_forward(weights(500), ids)).abs().max() > 0.1


def test_in_four_bits_it_is_fitted_and_its_adapter_loads_everywhere(run, first_folder, tmp_path, pairs) -> None:
    data = tmp_path / "pairs.json"
    for pair in pairs:
        pair["input"]["contents_txt"] = pair["input"]["contents_txt"][:300]
        pair["output"] = pair["output"][:300]
    data.write_text(json.dumps(pairs[:6]))
    fit = run(
        "fit", "--data.path", data, "--model.base_model", first_folder, "--run_dir", tmp_path / "run",
        "--data.group_by", "none", "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--model.warmup_steps", 1,
        "--eval.every_n_epochs", 0,
    )  # fmt: skip
    assert fit.status == 0, fit.err
    adapter = tmp_path / "run/adapter/last"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(first_folder)
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}

    converted = run("convert", "--base-model", first_folder, "--output", tmp_path / "qwen2")
    assert converted.status == 0, converted.err
    names = json.loads((tmp_path / "qwen2/config.json").read_text())
    assert names["model_type"] == "qwen2" and names["architectures"] == ["Qwen2ForCausalLM"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2", dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(plain(ids).logits, loaded(first_folder)(ids).logits, atol=1e-5, rtol=1e-5)
    tuned = PeftModel.from_pretrained(plain, adapter)
    assert any("q_proj" in name and "lora_A" in name for name, _ in tuned.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "qwen2")
    assert (
        tokenizer("on the thing\n\n  x").input_ids
        == convert_tiktoken(first_folder / "qwen.tiktoken").encode("on the thing\n\n  x").ids
    )
    generated = run(
        "generate", "--model", tmp_path / "run", "--input", data, "--max-tokens", 8, "--temperature", 0, "--no-compile"
    )
    assert generated.status == 0, generated.err


def test_a_damaged_vocabulary_is_reported(run, first_folder, tmp_path, pairs) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in first_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "qwen.tiktoken").write_text("not a vocabulary\n")
    result = run("lengths", "--data.path", "tests/data/reports.json", "--model.base_model", folder)
    assert result.status == 1 and "qwen.tiktoken" in result.err and "Traceback" not in result.err


def _texts(count: int) -> list[str]:
    generator = random.Random(0)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \n\t\r  ", "äöüßéèñçłøšž",
        "中文字符编码测试模型训练", "😀🎉👨‍👩‍👧🇮🇳👍🏽", "#$%&'*+-./:;<=>?@[]^_`{|}~\"\\", "देवनागरी", "العربية",
        "e\u0301a\u0300\u200b\ufeff",
    ]  # fmt: skip
    texts = []
    for _ in range(count):
        parts = generator.choices(alphabets, k=generator.randint(1, 6))
        texts.append("".join("".join(generator.choices(part, k=generator.randint(1, 9))) for part in parts))
    return texts


def test_the_tokenizer_agrees_with_tiktoken(first_folder) -> None:
    """On the real vocabulary where it is available (TYPST_LIT_QWEN1 is the path of its file), else on the small one."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    # The pattern as the original's tokenizer has it, copied here.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    path = Path(os.environ.get("TYPST_LIT_QWEN1", first_folder / "qwen.tiktoken"))
    ranks = load_tiktoken_bpe(str(path))
    reference = tiktoken.Encoding(
        "qwen", pat_str=pattern, mergeable_ranks=ranks,
        special_tokens={special: len(ranks) + index for index, special in enumerate(SPECIAL_TOKENS)},
    )  # fmt: skip
    tokenizer = convert_tiktoken(path)
    texts = _texts(10_000)
    for file in (Path(__file__).parent.parent / "data").glob("*.json"):
        texts += [pair["input"]["contents_txt"] + pair["output"] for pair in json.loads(file.read_text("utf-8"))]
    texts += [Path(__file__).read_text("utf-8"), "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|extra_7|>x"]
    for text in texts:
        normalized = unicodedata.normalize("NFC", text)
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(normalized, allowed_special="all"), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == normalized


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"model_type": "qwen2_vl"}, "multimodal"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
    ],
)
def test_unsupported_architectures_get_a_clear_message(run, tmp_path, config, words) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("plan", "--data.path", "tests/data/reports.json", "--model.base_model", tmp_path)
    assert result.status == 1 and "Traceback" not in result.err
    assert words in result.err and "Qwen/Qwen3-1.7B" in result.err
