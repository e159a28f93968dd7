"""First-generation Qwen (``Qwen/Qwen-1_8B`` and similar), loaded as Qwen2, without its own code.

That code no longer runs on current transformers. But the architecture is Qwen2 with other names: its weights are
renamed and split while they load, and its ``qwen.tiktoken`` becomes a fast tokenizer with the same ids.

It supports 8192 tokens (or what its configuration says): what its own code does beyond them is not implemented here.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, TokenizersBackend
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.utils import cached_file

from typst_lit._compat.transformers import cached_file_if_any, forget_weight_conversions
from typst_lit.errors import UserError

MODEL_TYPE = "qwen"
VOCABULARY_FILE = "qwen.tiktoken"
EOS, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [EOS, CHAT_START, CHAT_END, *(f"<|extra_{number}|>" for number in range(205))]
# Words, single digits, punctuation and spaces: how the original splits a text before it merges bytes.
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WEIGHT_NAMES = {
    r"^transformer\.wte\.": "model.embed_tokens.",
    r"^transformer\.ln_f\.": "model.norm.",
    r"^transformer\.h\.": "model.layers.",
    r"\.ln_1\.": ".input_layernorm.",
    r"\.ln_2\.": ".post_attention_layernorm.",
    r"\.attn\.c_proj\.": ".self_attn.o_proj.",
    r"\.mlp\.w1\.": ".mlp.up_proj.",
    r"\.mlp\.w2\.": ".mlp.gate_proj.",
    r"\.mlp\.c_proj\.": ".mlp.down_proj.",
}


class PreTrainedTokenizerFast(TokenizersBackend):
    """The class's old name, which is saved with the tokenizer: transformers 4 has no other."""


class Qwen1ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 that loads first-generation checkpoints."""


def _conversions() -> list[Any]:
    conversions: list[Any] = [WeightRenaming(source, target) for source, target in WEIGHT_NAMES.items()]
    for parameter in ("weight", "bias"):
        targets = [f".self_attn.{projection}_proj.{parameter}" for projection in "qkv"]
        conversions.append(WeightConverter([f".attn.c_attn.{parameter}"], targets, operations=[Chunk(dim=0)]))
    return conversions


register_checkpoint_conversion_mapping(Qwen1ForCausalLM.__name__, _conversions(), overwrite=True)


def qwen2_config(original: dict[str, Any]) -> Qwen2Config:
    """Returns a first-generation configuration as one of Qwen2."""
    heads = original["num_attention_heads"]
    return Qwen2Config(
        vocab_size=original["vocab_size"],
        hidden_size=original["hidden_size"],
        intermediate_size=original["intermediate_size"] // 2,  # which counts gate and up together
        num_hidden_layers=original["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=original.get("seq_length", 8192),
        rms_norm_eps=original.get("layer_norm_epsilon", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": float(original.get("rotary_emb_base", 10000))},
        tie_word_embeddings=original.get("tie_word_embeddings", False),
        bos_token_id=None,
        eos_token_id=original.get("eos_token_id"),
        pad_token_id=None,
        architectures=["Qwen2ForCausalLM"],
    )


def load_qwen1(name: str, **options: Any) -> Qwen2ForCausalLM:
    """Returns the model as Qwen2; ``options`` are those of ``from_pretrained``, the configuration among them."""
    model: Any = Qwen1ForCausalLM.from_pretrained(name, **options)
    # From here on it is a Qwen2, for PEFT and for saving: neither must return to the old names.
    model.__class__ = Qwen2ForCausalLM
    forget_weight_conversions(model)
    return model


def load_qwen1_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer of a first-generation model.

    Raises:
        OSError: when it has no vocabulary file.
        UserError: when the vocabulary is damaged.
    """
    vocabulary = cached_file(name, VOCABULARY_FILE, revision=revision)
    generation = cached_file_if_any(name, "generation_config.json", revision)
    is_chat = generation is not None and json.loads(generation.read_text("utf-8")).get("chat_format") == "chatml"
    return PreTrainedTokenizerFast(
        tokenizer_object=convert_tiktoken(Path(str(vocabulary))),
        eos_token=CHAT_END if is_chat else EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def convert_tiktoken(path: Path) -> Tokenizer:
    """Returns a tokenizer with the ids of a tiktoken vocabulary: per line a token in base64 and its rank.

    transformers' own ``TikTokenConverter`` needs tiktoken to be installed.

    Raises:
        UserError: when the file has another format.
    """
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise UserError(f"{path}: is not a tiktoken vocabulary ({error}).") from error
    characters = bytes_to_unicode()  # byte-level tokenizers write each byte as one of these

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    # tiktoken merges any two neighbors whose concatenation is a token, the lowest rank first. So every pair that gives
    # a token is a merge.
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs_of_token = ((token[:index], token[index:]) for index in range(1, len(token)))
        merges += [(text(left), text(right)) for left, right in pairs_of_token if left in ranks and right in ranks]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, normalized=False, special=True) for special in SPECIAL_TOKENS])
    return tokenizer
