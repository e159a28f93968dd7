"""Private API of `datasets`."""

from __future__ import annotations

from datasets import Dataset


def fingerprint(table: Dataset) -> str:
    """Returns the key of a table's content, from which the names of cache files are made.

    Read in datasets 5.2. ``map`` takes ``new_fingerprint``, but a table's own fingerprint has no public name.
    """
    return str(table._fingerprint)
