"""``typst-lit completion``: the completion script of a shell."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from typst_lit.cli.parser import Command
from typst_lit.errors import UserError


@Command
def completion(shell: Literal["bash", "zsh", "fish", "tcsh"]) -> None:
    """Print the completion script of a shell.

    Args:
        shell: For bash, `typst-lit completion bash > ~/.local/share/bash-completion/completions/typst-lit` installs it.
    """
    if importlib.util.find_spec("shtab") is None:
        raise UserError("completion scripts need shtab.", hint="pip install 'typst-lit[completion]'")
    set_parsing_settings(add_print_completion_argument=True)
    try:
        parser_of_all_commands().parse_args([f"--print_completion=shtab-{shell}"])
    finally:
        set_parsing_settings(add_print_completion_argument=False)


def parser_of_all_commands() -> ArgumentParser:
    """Returns a parser with every command. Only completion needs it: to build all takes seconds."""
    from typst_lit.cli.dispatch import COMMANDS, load_command, summary

    parser = ArgumentParser(prog="typst-lit")
    commands = parser.add_subcommands()
    for name in COMMANDS:
        command = load_command(name)
        subparser = command.parser() if isinstance(command, Command) else _settings_parser(name)
        commands.add_subcommand(name, subparser, help=summary(name))
    return parser


def _settings_parser(command: str) -> ArgumentParser:
    """Returns the parser of a command of LightningCLI, of which nothing is parsed or created."""
    from typst_lit.cli.fit import TypstCLI
    from typst_lit.cli.plan import PlanCLI

    class ParserOnly(PlanCLI if command == "plan" else TypstCLI):  # type: ignore[misc]
        def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
            self.config = parser.get_defaults()

        def before_instantiate_classes(self) -> None:
            pass

        def instantiate_classes(self) -> None:
            pass

    return (ParserOnly([]) if command == "plan" else ParserOnly(command, [])).parser
