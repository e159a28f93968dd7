"""A tiny Qwen3 with random weights and its own tokenizer: for tests, and as the initial weights of typst-nano.

    python -m benchmarks.nano.tiny_model DIRECTORY PAIRS.json      with a tokenizer trained on these pairs

A model of Qwen3-1.7B's shape, for benchmarks: ``python -m benchmarks.random_qwen3``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

EOS, PAD = "<|im_end|>", "<|endoftext|>"


def make_tiny_model(
    directory: str | Path,
    texts: Iterable[str],
    vocab_size: int = 1024,
    hidden_size: int = 128,
    num_layers: int = 2,
    seed: int = 0,
) -> Path:
    """Writes a random Qwen3 and a byte-level BPE tokenizer trained on the texts; returns the directory."""
    bpe = Tokenizer(models.BPE())
    # One token per digit, as in Qwen: numbers are copied, not known.
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=PAD)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 3,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 32,
            num_key_value_heads=hidden_size // 32,
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


def tokenizer_texts(path: Path) -> list[str]:
    """Returns the texts and the sources of the pairs in a file, to train a tokenizer on."""
    pairs = json.loads(path.read_text("utf-8"))
    return [text for pair in pairs for text in (pair["input"]["contents_txt"], pair["output"])]


if __name__ == "__main__":
    print(make_tiny_model(sys.argv[1], tokenizer_texts(Path(sys.argv[2]))))
