"""``typst-lit lengths``: how long the samples are, and what a maximum length would cost."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.model.backbones import Backbone, PretrainedBackbone
from typst_lit.plugins import load_plugins


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit lengths", description=run.__doc__)
    keep = {"path", "template", "source", "on_invalid", "num_proc", "cache_dir"}
    others = set(inspect.signature(TypstDataModule).parameters) - keep
    made.add_class_arguments(TypstDataModule, "data", skip=others, as_group=False)
    made.add_argument("--model.base_model", type=str, default="Qwen/Qwen3-1.7B", help="Whose tokenizer counts.")
    made.add_argument("--model.revision", type=str | None, default=None, help="Its branch, tag or commit.")
    made.add_argument("--model.trust_remote_code", type=bool, default=False, help="Run code of its repository.")
    made.add_argument("--model.backbone", type=Backbone | None, default=None, help="Another way to load the tokenizer.")
    made.add_argument("--output", type=str, default="lengths.png", help="Where the histogram goes.")
    return made


def run(args: Sequence[str]) -> None:
    """Prints the token counts of a data set and draws their histogram."""
    sys.path.insert(0, "")
    load_plugins()
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    data = TypstDataModule(**vars(config.data))
    pairs = data.pairs()
    backbone = config.model.backbone or PretrainedBackbone()
    model = config.model
    data.tokenizer = backbone.load_tokenizer(model.base_model, model.revision, model.trust_remote_code)
    report = data.length_report(pairs)
    print(report.text())
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report.draw(output)
    print(f"\nhistogram: {output}")
