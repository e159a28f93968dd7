"""``typst-lit completion``: the shell completion script."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from jsonargparse import set_parsing_settings

from typst_lit.errors import UserError

SHELLS = ("bash", "zsh", "fish", "tcsh")


def run(args: Sequence[str]) -> None:
    """Prints the completion script of a shell.

    Raises:
        UserError: when the shell is not one of them, or shtab is not installed.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        raise UserError(
            f"name the shell: typst-lit completion {' | '.join(SHELLS)}. For bash:\n"
            "  typst-lit completion bash > ~/.local/share/bash-completion/completions/typst-lit"
        )
    if importlib.util.find_spec("shtab") is None:
        raise UserError("completion scripts are written by shtab: pip install 'typst-lit[completion]'.")
    from typst_lit.cli.fit import TypstCLI

    set_parsing_settings(add_print_completion_argument=True)
    TypstCLI(None, [f"--print_completion=shtab-{args[0]}"])
