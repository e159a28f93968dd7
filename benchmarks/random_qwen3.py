"""Writes a model of Qwen3-1.7B's shape with random 16-bit weights, for speed and memory where no hub is at hand.

    python -m benchmarks.random_qwen3 TOKENIZER_DIR OUT_DIR [--layers 28] [--hidden 2048]
    typst-lit fit --model.base_model OUT_DIR --data.path pairs.json --data.max_length 2048 --data.batch_size 4 \\
      --data.overlength truncate_completion --trainer.max_steps 10

The second command prints the memory table of the fit; `--model.use_4bit`, batch size and length are its flags.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from benchmarks.model_configs import QWEN3_1_7B


def write_random_model(tokenizer: Path, out: Path, layers: int, hidden: int) -> None:
    """Writes the model folder, with the tokenizer that is given."""
    shape = {
        **QWEN3_1_7B.to_dict(), "num_hidden_layers": layers, "layer_types": None, "hidden_size": hidden,
        "intermediate_size": 3 * hidden, "num_attention_heads": max(2, hidden // 128),
        "num_key_value_heads": max(1, hidden // 256), "head_dim": min(128, hidden // 2),
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**shape), dtype=torch.bfloat16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=2048)
    options = parser.parse_args()
    write_random_model(options.tokenizer, options.out, options.layers, options.hidden)
    print(options.out)
