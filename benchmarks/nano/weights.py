"""The weights of typst-nano, the built-in base model: initialization and export.

    python -m benchmarks.nano.weights init DIRECTORY              random weights, and a tokenizer trained on chapters
    python -m benchmarks.nano.weights export MODEL DIRECTORY      a trained model in bfloat16, as the package ships it

``make pretrain-nano`` runs both, and all stages of pretraining between them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.nano.source import SyntheticReports
from benchmarks.nano.tiny_model import make_tiny_model
from typst_lit.data.prompts import ReportPrompt

NUM_TOKENIZER_CHAPTERS = 20_000


def _texts() -> Iterator[str]:
    source, prompt = SyntheticReports(NUM_TOKENIZER_CHAPTERS, seed=1), ReportPrompt()
    for index in range(NUM_TOKENIZER_CHAPTERS):
        pair = source.pair(index)
        yield prompt.render(pair["input"]) + pair["output"]


def init(directory: Path) -> None:
    """Writes the randomly initialized model that pretraining starts from."""
    make_tiny_model(directory, _texts(), vocab_size=4096, hidden_size=256, num_layers=6)


def export(model: Path, directory: Path) -> None:
    """Writes a trained model in bfloat16, and its tokenizer."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("directory", type=Path)
    export_parser = commands.add_parser("export")
    export_parser.add_argument("model", type=Path)
    export_parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    if args.command == "init":
        init(args.directory)
    else:
        export(args.model, args.directory)
    print(args.directory)


if __name__ == "__main__":
    main()
