"""Packages that extend typst_lit join through the entry-point group ``typst_lit.plugins``.

Each entry point names a module. It is imported before the command line is parsed, so that the classes in it
(callbacks, prompt templates, record sources, metrics, backbones) can be named in a configuration by their bare names.
A local file needs no entry point: its classes are named by their dotted path.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from typst_lit.errors import UserError

GROUP = "typst_lit.plugins"
_DOTTED_NAME = re.compile(r"(?<![\w./-])([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)+(?![\w/])")
_CONFIG_SUFFIXES = (".yaml", ".yml")
_FILE_SUFFIXES = (*_CONFIG_SUFFIXES, ".json", ".jsonl", ".ndjson", ".parquet", ".typ", ".pdf", ".png", ".html", ".py")


def load_plugins() -> list[str]:
    """Imports every installed plugin and returns their names.

    Raises:
        UserError: when a plugin can't be imported.
    """
    names = []
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist else entry.value
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"the plugin '{entry.name}' of the package {package} can't be loaded: {type(error).__name__}: {error}. "
                f"Fix it, or remove it with `pip uninstall {package}`."
            ) from error
        names.append(entry.name)
    return names


def allow_local_modules(args: Iterable[str]) -> bool:
    """Lets Python import from the working directory if a command line, or a YAML file in it, names a class there.

    Otherwise nothing is imported from it: it may be the directory of an adapter that was downloaded. Installed packages
    take precedence.

    Args:
        args: the arguments of the command line.

    Returns:
        Whether the working directory was added to ``sys.path``.

    >>> allow_local_modules(["--input", "records.json", "--model.optimizer=torch.optim.SGD"])
    False
    """
    for arg in args:
        value = arg.partition("=")[2] if arg.startswith("--") else arg
        texts = [value]
        if value.endswith(_CONFIG_SUFFIXES) and Path(value).is_file():
            texts.append(Path(value).read_text("utf-8", "replace"))
        for match in (match for text in texts for match in _DOTTED_NAME.finditer(text)):
            if not match[0].endswith(_FILE_SUFFIXES) and _is_local_module(match[1]):
                sys.path.append("")
                return True
    return False


def _is_local_module(name: str) -> bool:
    exists = Path(f"{name}.py").is_file() or any(Path(name).glob("*.py"))
    return exists and name not in sys.modules and find_spec(name) is None
