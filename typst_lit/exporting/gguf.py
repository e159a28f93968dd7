"""GGUF, the format of llama.cpp and Ollama, for the architectures that typst_lit trains most often."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.errors import UserError
from typst_lit.model.qwen1 import PRE_TOKENIZER_PATTERN

GgufType = Literal["f16", "q8_0"]
ARCHITECTURES = ("qwen2", "qwen3", "llama")
Q8_BLOCK_SIZE = 32
ALTERNATIVE = "Export the merged weights (`to=merged`), and run llama.cpp's convert_hf_to_gguf.py on them."


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, weights_type: GgufType) -> None:
    """Writes a model and its tokenizer as one file, atomically.

    Args:
        model: without an adapter.
        tokenizer: byte-level BPE.
        path: of the file.
        weights_type: of the matrices; vectors are written in 32 bits.

    Raises:
        UserError: when llama.cpp does not support the architecture or the tokenizer, or the gguf package is missing.
    """
    gguf = _import_gguf()
    architecture = model.config.model_type
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UserError(f"GGUF: the architecture {architecture} is not supported, only {supported}.", hint=ALTERNATIVE)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if weights_type == "f16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_hyperparameters(writer, model.config)
    _add_tokenizer(writer, gguf, tokenizer, model.config.vocab_size)
    _add_weights(writer, gguf, model, weights_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, config: PretrainedConfig) -> Any:
    """Returns the weights in a file as a model of transformers in fp32.

    Args:
        path: of the file.
        config: of the model. It is not read from the file, because transformers assumes a default for the head size.
    """
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32
    ).eval()


def pretokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns llama.cpp's name for the way in which a tokenizer splits text before it merges bytes.

    Raises:
        UserError: when llama.cpp has none.
    """
    description = json.loads(_backend(tokenizer).to_str())
    pretokenizer = description["pre_tokenizer"]
    steps = pretokenizer["pretokenizers"] if pretokenizer["type"] == "Sequence" else [pretokenizer]
    types = [step["type"] for step in steps]
    if types[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"]:
        if types[:-1] == ["Split"] and steps[0]["pattern"] == {"Regex": PRE_TOKENIZER_PATTERN}:
            return "qwen2"
        if types == ["ByteLevel"] and steps[-1]["use_regex"]:
            return "gpt-2"
        if types[:-1] == ["Digits"] and steps[0]["individual_digits"] and steps[-1]["use_regex"]:
            return "smollm"
    raise UserError(
        f"GGUF: the tokenizer splits text in a way that is not supported ({', '.join(types)}).", hint=ALTERNATIVE
    )


def _import_gguf() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the gguf package.", hint="`pip install 'typst-lit[gguf]'` installs it.") from None
    return gguf


def _backend(tokenizer: Any) -> Any:
    return tokenizer.backend_tokenizer


def _add_hyperparameters(writer: Any, config: Any) -> None:
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, gguf: ModuleType, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    description = json.loads(_backend(tokenizer).to_str())
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in description["model"]["merges"]]
    added = {entry["id"]: entry for entry in description["added_tokens"]}
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(vocab_size):
        tokens.append(vocabulary.get(index, f"[PAD{index}]"))
        if index not in vocabulary:
            types.append(gguf.TokenType.UNUSED)
        elif index not in added:
            types.append(gguf.TokenType.NORMAL)
        else:
            types.append(gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pretokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)


def _add_weights(writer: Any, gguf: ModuleType, model: PreTrainedModel, weights_type: GgufType) -> None:
    config: Any = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue  # llama.cpp then uses the embeddings
        module, _, parameter = name.rpartition(".")
        values = tensor.detach().to("cpu", torch.float32).numpy()
        if config.model_type == "llama" and module.endswith(("q_proj", "k_proj")):
            is_query = module.endswith("q_proj")
            values = _interleave(values, config.num_attention_heads if is_query else config.num_key_value_heads)
        target = f"{names.get_name(module)}.{parameter}"
        if values.ndim < 2:
            writer.add_tensor(target, values)
        elif weights_type == "f16" or values.shape[-1] % Q8_BLOCK_SIZE:
            writer.add_tensor(target, values.astype(np.float16))
        else:
            writer.add_tensor(target, gguf.quantize(values, q8_0), raw_dtype=q8_0)


def _interleave(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns Llama's query or key rows in the order of llama.cpp, whose rotary embedding pairs adjacent rows."""
    head_size = values.shape[0] // num_heads
    return values.reshape(num_heads, 2, head_size // 2, -1).swapaxes(1, 2).reshape(values.shape)
