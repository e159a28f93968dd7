"""Parsers whose errors are one message, with the nearest known option."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from typst_lit.cli.messages import Flags, use_flags
from typst_lit.errors import UsageError


def explain_parse_error(message: str, parser: ArgumentParser) -> str:
    """Returns a parser's message with the nearest known option, where an unknown one was meant."""
    message = message.strip()
    unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:|not expected:?) '?-*([\w.]+)", message)
    if unknown:
        known = [name.lstrip("-") for name in parser._option_string_actions]
        near = difflib.get_close_matches(unknown[1], known, n=3, cutoff=0.75)
        if near:
            message += f"\nDid you mean {' or '.join('--' + name for name in near)}?"
    return f"{message}\n`{parser.prog} --help` lists the options."


class CommandParser(ArgumentParser):
    """A parser whose errors are one message, and whose flags the messages of its command name."""

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        use_flags(Flags.from_parser(self, sys.argv[1:] if args is None else args, has_groups=False))
        return super().parse_args(args, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(explain_parse_error(message, self))
