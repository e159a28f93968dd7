"""typst-nano, the built-in base model: where it begins, and how it is packed.

    python -m benchmarks.nano.nano begin DIRECTORY           a tokenizer from made-up chapters, weights at random
    python -m benchmarks.nano.nano pack MODEL DIRECTORY      a trained model in 16 bits, as it is shipped

``make pretrain-nano`` has what lies between.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.nano.random_model import make_tiny_model
from benchmarks.nano.source import SyntheticReports
from typst_lit.data.prompts import ReportPrompt

TEXTS = 20_000  # chapters that the tokenizer is learned from


def _texts() -> Iterator[str]:
    source, prompt = SyntheticReports(TEXTS, seed=1), ReportPrompt()
    for index in range(TEXTS):
        pair = source.pair(index)
        yield prompt.render(pair["input"]) + pair["output"]


def begin(directory: Path) -> None:
    """Writes the model that training begins with."""
    make_tiny_model(directory, _texts(), vocabulary=4096, hidden=256, layers=6)


def pack(model: Path, directory: Path) -> None:
    """Writes a trained model in bfloat16, with its tokenizer and nothing else."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("begin").add_argument("directory", type=Path)
    packing = steps.add_parser("pack")
    packing.add_argument("model", type=Path)
    packing.add_argument("directory", type=Path)
    args = parser.parse_args()
    begin(args.directory) if args.step == "begin" else pack(args.model, args.directory)
    print(args.directory)


if __name__ == "__main__":
    main()
