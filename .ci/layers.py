#!/usr/bin/env python3
"""Checks which modules of typst_lit import which: the layers, and who may use a dependency or its private API."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A module imports only from its own layer and from those above it in this list. TYPE_CHECKING imports count, too.
LAYERS = [
    ["_compat", "_lazy", "errors", "files", "plugins", "progress", "version"],
    ["data", "typesetting", "metrics.functional"],
    ["model"],
    ["inference", "metrics", "reporting"],
    ["callbacks", "planning"],
    ["exporting", "serving"],
    ["cli"],
    ["__main__"],
]
LAYER = {f"typst_lit.{name}": number for number, names in enumerate(LAYERS) for name in names}
NO_TORCH = ("typst_lit.typesetting", "typst_lit.metrics.functional")  # and no Lightning
ONLY_IN_MODEL = ("peft", "bitsandbytes")
PRIVATE_BUT_DOCUMENTED = re.compile(r"_asdict|_fields|_replace|_exit|_foreach_\w+|\w*__")
HAVE_PRIVATE_API = ("torch", "lightning", "lightning_utilities", "peft", "transformers", "jsonargparse", "bitsandbytes")


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    """Returns whether a module is one of the packages or in one of them."""
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def layer(module: str) -> int | None:
    """Returns the layer of the most specific entry that contains a module; None where no entry does."""
    while module not in LAYER and "." in module:
        module = module.rpartition(".")[0]
    return LAYER.get(module)


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of everything that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level


def private_names(tree: ast.AST) -> set[str]:
    """Returns the names with an underscore in front that a module itself defines or assigns."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.arg(arg=name):
                names.add(name)
    return {name for name in names if name.startswith("_")}


def errors_in(module: str, tree: ast.AST, own_names: set[str]) -> Iterator[tuple[int, str]]:
    """Yields line and description of each import that a module of typst_lit must not have."""
    own_layer = layer(module)
    if own_layer is None:
        yield 1, f"{module} is in no layer; add it to LAYERS in {Path(__file__).name}"
        return
    in_compat = is_in(module, ("typst_lit._compat",))
    for line, name in imported_names(tree):
        if name.startswith("."):
            yield line, "relative import; write the absolute name"
        elif is_in(name, ("typst_lit",)):
            other = layer(name)
            if other is None:
                yield line, f"{name} imports through the root package; import it from the module that defines it"
            elif other > own_layer:
                yield line, f"{module} (layer {own_layer}) must not import {name} (layer {other})"
        elif is_in(name, ("benchmarks", "tests")):
            yield line, f"the package must not import {name}, which is not installed with it"
        elif is_in(module, NO_TORCH) and is_in(name, ("torch", "lightning")):
            yield line, f"{module} must not import {name}"
        elif is_in(name, ONLY_IN_MODEL) and not is_in(module, ("typst_lit.model",)) and not in_compat:
            yield line, f"only typst_lit.model imports {name.partition('.')[0]}"
        elif is_in(name, HAVE_PRIVATE_API) and re.search(r"\._(?!_)", name) and not in_compat:
            yield line, f"{name} is private; use it in typst_lit/_compat only"
    for node in ast.walk(tree):
        if in_compat or not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr not in own_names and not PRIVATE_BUT_DOCUMENTED.fullmatch(node.attr):
            yield node.lineno, f".{node.attr} is private to a dependency; use it in typst_lit/_compat only"


def main() -> int:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "typst_lit").rglob("*.py"))}
    own_names = set().union(*map(private_names, trees.values()))
    found = False
    for path, tree in trees.items():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "typst_lit":
            continue  # exports names of all layers
        for line, message in errors_in(module, tree, own_names):
            print(f"{path.relative_to(ROOT)}:{line}: {message}")
            found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
