"""The built-in base model: how it begins, and how it is packed once it is trained.

    python -m typst_lit.synthesis.nano begin DIRECTORY          tokenizer learned from made-up chapters, random weights
    python -m typst_lit.synthesis.nano pack MODEL DIRECTORY     a trained model in 16 bits

``configs/pretrain_nano.yaml`` says what comes between.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from typst_lit.data.prompts import ReportPrompt
from typst_lit.model.tiny import make_tiny_model
from typst_lit.synthesis.source import SyntheticReports

TEXTS = 20_000  # chapters that the tokenizer is learned from


def _texts() -> Iterator[str]:
    source, prompt = SyntheticReports(TEXTS, seed=1), ReportPrompt()
    for index in range(TEXTS):
        pair = source.pair(index)
        yield prompt.render(pair["input"]) + pair["output"]


def pack(trained: str, directory: Path) -> None:
    """Writes a model's weights in bf16, with its tokenizer, as they go into the package."""
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(trained).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("begin").add_argument("directory", type=Path)
    packing = steps.add_parser("pack")
    packing.add_argument("model")
    packing.add_argument("directory", type=Path)
    args = parser.parse_args()
    if args.step == "begin":
        make_tiny_model(args.directory, _texts(), vocabulary=4096, hidden=256, layers=6)
    else:
        pack(args.model, args.directory)
    print(args.directory)


if __name__ == "__main__":
    main()
