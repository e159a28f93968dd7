"""Writes a model of Qwen3-1.7B's shape with random 16-bit weights, to measure speed and memory without a download.

    python -m benchmarks.random_qwen3 TOKENIZER_DIR OUTPUT_DIR [--layers 28] [--hidden 2048]
    typst-lit fit --model.base_model OUTPUT_DIR --data.path pairs.json --data.max_length 2048 --data.batch_size 4 \\
      --data.overlength truncate_completion --trainer.max_steps 10

The second command prints the memory table of a fit. A tiny model for tests: ``python -m benchmarks.nano.tiny_model``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from benchmarks.model_configs import QWEN3_1_7B


def write_random_qwen3(tokenizer: Path, output: Path, num_layers: int, hidden_size: int) -> None:
    """Writes the model directory, with a copy of the tokenizer."""
    shape = {
        **QWEN3_1_7B.to_dict(), "num_hidden_layers": num_layers, "layer_types": None, "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size, "num_attention_heads": max(2, hidden_size // 128),
        "num_key_value_heads": max(1, hidden_size // 256), "head_dim": min(128, hidden_size // 2),
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**shape), dtype=torch.bfloat16)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=2048)
    args = parser.parse_args()
    write_random_qwen3(args.tokenizer, args.output, args.layers, args.hidden)
    print(args.output)


if __name__ == "__main__":
    main()
