"""Packages that extend typst_lit join through the entry-point group ``typst_lit.plugins``.

Each entry point names a module. It is imported before the command line is parsed, so that the classes in it
(callbacks, prompt templates, record sources, metrics, backbones) can be named in a configuration by their bare names.
A local file needs no entry point: its classes are named by their dotted path.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from typst_lit.errors import UserError

GROUP = "typst_lit.plugins"


def load_plugins() -> list[str]:
    """Imports every installed plugin and returns their names.

    From then on, modules in the working directory can be imported too, so that local classes have a dotted path.

    Raises:
        UserError: when a plugin can't be imported.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
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
