"""The small commands: those that are not a run of the trainer."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UsageError, UserError
from typst_lit.model.backbones import Backbone, PretrainedBackbone
from typst_lit.plugins import load_plugins


def parse_failure(message: str, parser: ArgumentParser) -> str:
    """Returns a parser's message with the nearest known option, where an unknown one was meant."""
    message = message.strip()
    unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|not expected:?) '?-*([\w.]+)", message)
    if unknown:
        known = [name.lstrip("-") for name in parser._option_string_actions]
        near = difflib.get_close_matches(unknown[1], known, n=3, cutoff=0.75)
        if near:
            message += f"\nDid you mean {' or '.join('--' + name for name in near)}?"
    return f"{message}\n`{parser.prog} --help` lists the options."


class SmallParser(ArgumentParser):
    """A parser whose errors are one message."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(parse_failure(message, self))


def lengths_parser() -> ArgumentParser:
    """Returns the parser of the lengths command."""
    parser = SmallParser(prog="typst-lit lengths", description=lengths.__doc__)
    keep = {"path", "template", "source", "on_invalid", "num_proc", "cache_dir"}
    others = set(inspect.signature(TypstDataModule).parameters) - keep
    parser.add_class_arguments(TypstDataModule, "data", skip=others, as_group=False)
    parser.add_argument("--model.base_model", type=str, default="Qwen/Qwen3-1.7B", help="Whose tokenizer counts.")
    parser.add_argument("--model.revision", type=str | None, default=None, help="Its branch, tag or commit.")
    parser.add_argument("--model.trust_remote_code", type=bool, default=False, help="Run code of its repository.")
    parser.add_argument(
        "--model.backbone", type=Backbone | None, default=None, help="Another way to load the tokenizer."
    )
    parser.add_argument("--output", type=str, default="lengths.png", help="Where the histogram goes.")
    return parser


def lengths(args: Sequence[str]) -> None:
    """Prints the token counts of a data set and draws their histogram."""
    sys.path.insert(0, "")
    load_plugins()
    parser = lengths_parser()
    config = parser.instantiate_classes(parser.parse_args(list(args)))
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


def completion(args: Sequence[str]) -> None:
    """Prints the completion script of a shell.

    Raises:
        UserError: when the shell is not one of them, or shtab is not installed.
    """
    shells = ("bash", "zsh", "fish", "tcsh")
    if len(args) != 1 or args[0] not in shells:
        raise UserError(
            f"name the shell: typst-lit completion {' | '.join(shells)}. For bash:\n"
            "  typst-lit completion bash > ~/.local/share/bash-completion/completions/typst-lit"
        )
    if importlib.util.find_spec("shtab") is None:
        raise UserError("completion scripts are written by shtab: pip install 'typst-lit[completion]'.")
    from typst_lit.training import TypstCLI

    set_parsing_settings(add_print_completion_argument=True)

    TypstCLI(None, [f"--print_completion=shtab-{args[0]}"])
