"""``typst-lit configs``: the configurations that come with the package."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from typst_lit.cli.parser import Command
from typst_lit.errors import UserError

CONFIG_FLAGS = ("-c", "--config")


@Command
def configs(names: list[str]) -> None:
    """List the configurations that `fit --config NAME` knows, or print some of them.

    Args:
        names: The configurations to print.
    """
    for name in names:
        print(_find(name).read_text("utf-8"), end="")
    if not names:
        known = packaged_configs()
        width = max(map(len, known))
        for name, file in known.items():
            print(f"{name:<{width}}  {file.read_text('utf-8').splitlines()[0].removeprefix('# ')}")


def packaged_configs() -> dict[str, Path]:
    """Returns the YAML files that come with the package, by their names without the suffix."""
    package = Path(__file__).parents[1]
    directory = package / "configs"
    if not directory.is_dir():  # a clone, where they are at the top level
        directory = package.parent / "configs"
    return {file.stem: file for file in sorted(directory.glob("*.yaml"))}


def resolve_config(name: str) -> str:
    """Returns the path of a configuration: an existing file, or the packaged one of this name.

    Raises:
        UserError: when there is neither; its hint has the nearest names.
    """
    if Path(name).exists() or ":" in name:  # a URL, or YAML as text
        return name
    if Path(name).name == name or Path(name).parent == Path("configs"):
        return str(_find(Path(name).stem))
    raise UserError(f"{name} does not exist.", setting="config")


def _find(name: str) -> Path:
    known = packaged_configs()
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, cutoff=0.5) or list(known)
    raise UserError(f"there is no configuration '{name}'.", hint=f"Known: {', '.join(nearest)}; or name a YAML file.")


def resolve_configs(args: Sequence[str]) -> list[str]:
    """Returns arguments in which the names after ``--config`` are paths; URLs and inline YAML stay as they are.

    Raises:
        UserError: when a configuration does not exist.
    """
    resolved: list[str] = []
    for index, arg in enumerate(args):
        flag, separator, value = arg.partition("=")
        if index and args[index - 1] in CONFIG_FLAGS:
            resolved.append(resolve_config(arg))
        elif separator and flag in CONFIG_FLAGS:
            resolved.append(f"{flag}={resolve_config(value)}")
        else:
            resolved.append(arg)
    return resolved


def read_configs(args: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the content of each configuration after ``--config``; not of URLs, nor of invalid YAML.

    Args:
        args: arguments of `resolve_configs`.
    """
    for index, arg in enumerate(args):
        flag, separator, value = arg.partition("=")
        if index and args[index - 1] in CONFIG_FLAGS:
            name = arg
        elif separator and flag in CONFIG_FLAGS:
            name = value
        else:
            continue
        try:
            content = yaml.safe_load(Path(name).read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # the parser explains what is wrong
            continue
        if isinstance(content, dict):
            yield name, content
