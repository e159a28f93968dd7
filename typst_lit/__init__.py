"""typst_lit: fine-tune a small Qwen model on pairs of record and Typst source.

Importing the package is cheap: nothing of torch or Lightning is loaded before a room is entered.
"""

from typst_lit.version import __version__

__all__ = ["__version__"]
