"""The command line: one module per command, and `main`, which chooses among them and loads nothing heavy before."""

from typst_lit.cli.dispatch import main

__all__ = ["main"]
