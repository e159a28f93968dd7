"""The small commands: those that are not a run of the trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.model.backbones import Backbone, PretrainedBackbone
from typst_lit.plugins import load_plugins


def lengths(args: Sequence[str]) -> None:
    """Prints the token counts of a data set and draws their histogram."""
    sys.path.insert(0, "")
    load_plugins()
    parser = ArgumentParser(prog="typst-lit lengths", description=lengths.__doc__)
    parser.add_argument("--data.path", required=True, type=str, help="Pairs: file, folder or hub data set.")
    keep = {"template", "source", "on_invalid", "num_proc", "cache_dir"}
    parser.add_class_arguments(TypstDataModule, "data", skip=_parameters(TypstDataModule) - keep, as_group=False)
    parser.add_argument("--model.base_model", type=str, default="Qwen/Qwen3-1.7B", help="Whose tokenizer counts.")
    parser.add_argument("--model.revision", type=str | None, default=None, help="Its branch, tag or commit.")
    parser.add_argument("--model.trust_remote_code", type=bool, default=False, help="Run code of its repository.")
    parser.add_argument("--model.backbone", type=Backbone, default=None, help="Another way to load the tokenizer.")
    parser.add_argument("--output", type=str, default="lengths.png", help="Where the histogram goes.")
    config = parser.instantiate_classes(parser.parse_args(list(args)))
    options = vars(config.data)
    path = options.pop("path")
    data = TypstDataModule(path=path, **options)
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


def _parameters(owner: type) -> set[str]:
    import inspect

    return set(inspect.signature(owner.__init__).parameters) - {"self"}


def completion(args: Sequence[str]) -> None:
    """Prints the completion script of a shell."""
    raise NotImplementedError
