"""A small Qwen3 with random weights and a tokenizer of its own, made on the spot: where a base model begins.

python -m benchmarks.nano.random_model DIRECTORY PAIRS.json      with a tokenizer learned from these pairs
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END, PAD = "<|im_end|>", "<|endoftext|>"


def make_tiny_model(
    directory: str | Path,
    texts: Iterable[str],
    vocabulary: int = 1024,
    hidden: int = 128,
    layers: int = 2,
    seed: int = 0,
) -> Path:
    """Writes a randomly initialised Qwen3 and a byte-level BPE learned from the texts; returns the directory."""
    bpe = Tokenizer(models.BPE())
    # Digits one by one, as Qwen has them: numbers are copied, not known.
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 3,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            head_dim=32,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)


def texts_of(pairs: Path) -> list[str]:
    """Returns the texts and the sources of pairs, for a tokenizer to learn from."""
    listed = json.loads(pairs.read_text("utf-8"))
    return [text for pair in listed for text in (pair["input"]["contents_txt"], pair["output"])]


if __name__ == "__main__":
    print(make_tiny_model(sys.argv[1], texts_of(Path(sys.argv[2]))))
