"""Private API of `datasets`."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, config


def fingerprint(table: Dataset) -> str:
    """Returns the key of a table's content, from which the names of cache files are made.

    Read in datasets 5.2. ``map`` takes ``new_fingerprint``, but a table's own fingerprint has no public name.
    """
    return str(table._fingerprint)


def generator_cache(cache_dir: str | None, fingerprint: str) -> Path:
    """Returns the directory in which ``Dataset.from_generator`` caches a table, and ``map`` what is computed from it.

    Read in datasets 5.2: the names of the builder and of its configuration.
    """
    return Path(cache_dir or config.HF_DATASETS_CACHE) / "generator" / f"default-fingerprint={fingerprint}"
