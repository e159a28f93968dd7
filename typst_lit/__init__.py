"""typst_lit: fine-tune a small Qwen model on pairs of record and Typst source.

Importing the package is cheap: nothing of torch or Lightning is loaded before a room is entered.
"""

import os

from typst_lit.version import __version__

# torch reads it once, before its first tensor: large ones on the CPU lie in pages of 2 MiB, which come faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["__version__"]
