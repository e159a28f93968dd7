"""The command line: one module per command, and `main`, which chooses one and imports nothing heavy before."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach
from typst_lit.cli.dispatch import main

if TYPE_CHECKING:
    from typst_lit.cli.fit import TypstCLI as TypstCLI

__getattr__, __dir__, __all__ = attach(__name__, {"TypstCLI": "typst_lit.cli.fit"})
__all__ += [main.__name__]
