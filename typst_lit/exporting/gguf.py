"""GGUF, the format of llama.cpp and Ollama, for the architectures that the adapters here are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.errors import UserError
from typst_lit.model.qwen1 import SPLIT

Kind = Literal["f16", "q8_0"]
ARCHITECTURES = ("qwen2", "qwen3", "llama")
Q8_BLOCK = 32
GPT2_LIKE = {"use_regex": True, "add_prefix_space": False}


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: Kind) -> None:
    """Writes a model and its tokenizer as one file.

    Raises:
        UserError: when llama.cpp would not know the architecture or the tokenizer, or the gguf package is missing.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the gguf package: pip install 'typst-lit[gguf]'.") from None
    config = model.config
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"GGUF: {config.model_type} is not among the architectures known here ({', '.join(ARCHITECTURES)}). Use "
            "--to merged, and llama.cpp's own convert_hf_to_gguf.py on the folder."
        )
    splitter = splitter_of(tokenizer)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    scratch = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(scratch, config.model_type)
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "f16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, gguf, tokenizer, splitter, config.vocab_size)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type),
        config.num_hidden_layers,
    )
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # without one, the table serves
        stem, _, last = name.rpartition(".")
        values = tensor.detach().to("cpu", torch.float32).numpy()
        if config.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = _interleaved(values, heads if stem.endswith("q_proj") else config.num_key_value_heads)
        target = f"{names.get_name(stem)}.{last}"
        if values.ndim < 2:
            writer.add_tensor(target, values)
        elif kind == "f16" or values.shape[-1] % Q8_BLOCK:
            writer.add_tensor(target, values.astype(np.float16))
        else:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(values, q8), raw_dtype=q8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def read_gguf(path: Path, config: PretrainedConfig) -> Any:
    """Returns the weights in a file, opened by transformers, as a model of this configuration in 32 bits.

    The configuration is given, because transformers takes the width of the heads to be its default.
    """
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32
    ).eval()


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Returns Llama's query or key rows in the order of llama.cpp, which turns neighbours and not halves."""
    rows = values.shape[0] // heads
    return values.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(values.shape)


def splitter_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns llama.cpp's name for the way in which a tokenizer splits text before it merges bytes.

    Raises:
        UserError: when there is none.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    splitter = described["pre_tokenizer"]
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    kinds = [step["type"] for step in steps]
    bytes_too = kinds[-1:] == ["ByteLevel"] and not steps[-1]["add_prefix_space"]
    if bytes_too and kinds[:-1] == ["Split"] and steps[0]["pattern"] == {"Regex": SPLIT}:
        return "qwen2"
    if bytes_too and steps[-1]["use_regex"]:
        if not kinds[:-1]:
            return "gpt-2"
        if kinds[:-1] == ["Digits"] and steps[0]["individual_digits"]:
            return "smollm"
    raise UserError(
        f"GGUF: this tokenizer splits text as no other that is known here ({', '.join(kinds)}). Use --to merged, and "
        "llama.cpp's own convert_hf_to_gguf.py on the folder."
    )


def _add_tokenizer(writer: Any, gguf: Any, tokenizer: Any, splitter: str, size: int) -> None:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    words = {index: word for word, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(size):
        if index not in words:
            tokens.append(f"[PAD{index}]")
            types.append(gguf.TokenType.UNUSED)
            continue
        tokens.append(words[index])
        special = index in added and added[index]["special"]
        types.append(
            gguf.TokenType.CONTROL
            if special
            else gguf.TokenType.USER_DEFINED
            if index in added
            else gguf.TokenType.NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
