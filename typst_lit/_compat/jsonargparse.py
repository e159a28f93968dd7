"""Private API of jsonargparse, as read in 4.53.0."""

from __future__ import annotations

from argparse import Action
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jsonargparse import ActionYesNo, ArgumentParser


class Option(NamedTuple):
    """An option of a parser.

    Attributes:
        name: where its value goes in the configuration, dotted.
        flags: what is typed, the preferred spelling first.
        is_switch: whether it takes no value, as ``--overwrite`` and ``--no-overwrite``.
        is_group: whether it takes a file of settings for a group of other options, as ``--data``.
        help: its help text.
    """

    name: str
    flags: Sequence[str]
    is_switch: bool
    is_group: bool
    help: str = ""


def options(parser: ArgumentParser) -> Iterator[Option]:
    """Yields the options of a parser, those excepted that only print help.

    ``ArgumentParser._actions``: neither argparse nor jsonargparse has a public list of what was added to a parser.
    """
    actions: list[Action] = parser._actions
    names = [action.dest for action in actions if not action.dest.endswith(".help")]
    for action in actions:
        if action.option_strings and action.dest in names and action.dest != "help":
            is_group = any(name.startswith(f"{action.dest}.") for name in names)
            yield Option(
                action.dest, action.option_strings, isinstance(action, ActionYesNo), is_group, action.help or ""
            )


def is_optional_bool(action: Any) -> bool:
    """Returns whether an action that jsonargparse creates for a parameter parses true, false and null.

    ``ActionTypeHint._typehint``: for such a type, ``add_argument`` is called with an action instead of a type.
    """
    return getattr(action, "_typehint", None) == (bool | None)


def allow_none(switch: ActionYesNo) -> None:
    """Lets a switch that is not typed be None.

    ``ActionYesNo._check_type``: checks defaults, too, and accepts booleans only.
    """
    check: Callable[[Any], bool] = switch._check_type
    switch._check_type = lambda value: None if value is None else check(value)  # type: ignore[method-assign]
