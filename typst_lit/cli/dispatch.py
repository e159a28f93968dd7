"""`main` chooses a command. Nothing heavy is imported before."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from typst_lit.cli.exceptions import exit_status
from typst_lit.cli.logs import set_up_logging
from typst_lit.cli.messages import Flags, use_flags
from typst_lit.plugins import allow_local_modules, load_plugins
from typst_lit.version import __version__

# Each function takes the arguments of its command line. Its summary is the first line of its docstring.
COMMANDS = {
    "fit": "typst_lit.cli.fit:fit",
    "validate": "typst_lit.cli.fit:validate",
    "test": "typst_lit.cli.fit:test",
    "predict": "typst_lit.cli.fit:predict",
    "plan": "typst_lit.cli.plan:plan",
    "lengths": "typst_lit.cli.lengths:lengths",
    "contract": "typst_lit.cli.contract:contract",
    "generate": "typst_lit.cli.generate:generate",
    "serve": "typst_lit.cli.serve:serve",
    "app": "typst_lit.cli.app:app",
    "score": "typst_lit.cli.score:score",
    "compile": "typst_lit.cli.compile:compile",
    "export": "typst_lit.cli.export:export",
    "convert": "typst_lit.cli.convert:convert",
    "configs": "typst_lit.cli.configs:configs",
    "doctor": "typst_lit.cli.doctor:doctor",
    "completion": "typst_lit.cli.completion:completion",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments, the command first; by default those of the process.

    Returns:
        The exit status: 0; 1 after an error that the user can fix; 2 for a command line or configuration that can't be
        parsed; 128 plus the signal's number for a run that a signal stopped, and for output that nobody reads.

    Example:
        >>> from typst_lit.cli import main
        >>> main(["--version"])  # doctest: +ELLIPSIS
        typst-lit ...
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(args)
        print(end="", flush=True)  # raises here, not when Python ends, if nobody reads the output
    except BaseException as error:
        failure = exit_status(error, args)
        if failure is None:
            raise
        return failure
    return status


def _run(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"typst-lit {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(f"typst-lit: {unknown_command(args[0])}", file=sys.stderr)
        return 2
    # torch reads this once, before its first tensor: large CPU tensors are allocated in pages of 2 MiB, which is faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    set_up_logging()
    use_flags(Flags())  # none, until the command has a parser
    load_plugins()
    allow_local_modules(args[1:])
    load_command(args[0])(args[1:])
    return 0


def load_command(name: str) -> Callable[[Sequence[str]], None]:
    """Imports the module of a command and returns its function."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def usage() -> str:
    """Returns the help text of the command line."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary(name)}" for name in COMMANDS)
    return (
        "usage: typst-lit [--help] [--version] COMMAND ...\n\n"
        "Teach a small language model to write Typst documents.\n\n"
        f"commands:\n{rows}\n\n"
        "`typst-lit COMMAND --help` shows the options of a command. To begin:\n"
        "  typst-lit fit --config colab_t4 --data.path pairs.json\n"
        "  typst-lit generate --model runs/default --input records.json --output documents.json --pdf\n"
    )


def summary(command: str) -> str:
    """Returns the first line of a command's docstring, read from the source so that nothing is imported."""
    module, _, function = COMMANDS[command].partition(":")
    spec = find_spec(module)
    source = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return inspect.cleandoc(ast.get_docstring(node) or "").split("\n")[0].rstrip(".")
    return ""


def unknown_command(name: str) -> str:
    """Returns what to say about a command that does not exist."""
    nearest = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"there is no command '{name}'. {hint}Commands: {', '.join(COMMANDS)}."
