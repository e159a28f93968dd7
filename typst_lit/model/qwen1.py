"""First-generation Qwen (``Qwen/Qwen-1_8B`` and its like) as the Qwen2 that it is, without its own code.

That code no longer runs on current transformers. But the model is Qwen2 under other names: its weights are renamed and
split while they load, and its ``qwen.tiktoken`` becomes a fast tokenizer with the same ids.

It reaches 8192 tokens (or what its configuration says): what its own code does past them is not done here.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, TokenizersBackend
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.utils import cached_file

from typst_lit.errors import UserError

MODEL_TYPE = "qwen"
VOCABULARY_FILE = "qwen.tiktoken"
END, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [END, CHAT_START, CHAT_END, *(f"<|extra_{number}|>" for number in range(205))]
# Words, single digits, signs and blanks, as the original splits before it merges bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = {
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
    """The class's old name, which is what is saved: engines on transformers 4 know no other."""


class Qwen1ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 that reads first-generation checkpoints."""


def _conversions() -> list[Any]:
    joined: list[Any] = [WeightRenaming(source, target) for source, target in NAMES.items()]
    for kind in ("weight", "bias"):
        targets = [f".self_attn.{part}_proj.{kind}" for part in "qkv"]
        joined.append(WeightConverter([f".attn.c_attn.{kind}"], targets, operations=[Chunk(dim=0)]))
    return joined


register_checkpoint_conversion_mapping(Qwen1ForCausalLM.__name__, _conversions(), overwrite=True)


def qwen2_config(original: dict[str, Any]) -> Qwen2Config:
    """Returns the Qwen2 configuration of a first-generation one."""
    heads = original["num_attention_heads"]
    return Qwen2Config(
        vocab_size=original["vocab_size"],
        hidden_size=original["hidden_size"],
        intermediate_size=original["intermediate_size"] // 2,  # it counts gate and up together
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
    # From here on it is a Qwen2, for PEFT and for saving: neither shall go back to the old names.
    model.__class__ = Qwen2ForCausalLM
    model._weight_conversions = None
    return model


def load_qwen1_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer of a first-generation model.

    Raises:
        UserError: when its vocabulary is not there, or is not one.
    """
    found = cached_file(name, VOCABULARY_FILE, revision=revision)
    generation = cached_file(
        name, "generation_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    chats = generation is not None and json.loads(Path(generation).read_text("utf-8")).get("chat_format") == "chatml"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(Path(str(found))),
        eos_token=CHAT_END if chats else END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def tokenizer_of(path: Path) -> Tokenizer:
    """Returns a tokenizer with the ids of a tiktoken vocabulary: lines of a token in base64 and its rank.

    Raises:
        UserError: when the file has another form.
    """
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise UserError(f"{path}: is no tiktoken vocabulary ({error}).") from error
    shown = _shown_bytes()

    def text(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    # tiktoken merges any two neighbours whose union is a token, the lowest rank first: so each token brings every pair
    # that makes it.
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        merges += [(text(left), text(right)) for left, right in cuts if left in ranks and right in ranks]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, normalized=False, special=True) for special in SPECIALS])
    return tokenizer


def _shown_bytes() -> dict[int, str]:
    """Returns the character that byte-level tokenizers write for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}
