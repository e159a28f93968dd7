"""Holding records out for validation without leaking what was learned into what is measured."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset

SKETCH_SIZE = 32
MOST_PLACES = 100  # of a run of words that are looked at: where more texts have it, any of them serves
MOST_COMPARED = 10  # texts, those that share most, whose similarity is computed
ROWS_AT_ONCE = 10_000
WORDS_A_SHINGLE = 5


def split_by_group(groups: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds whole groups out, as near to ``fraction`` of the records as whole groups allow, and at least one.

    Args:
        groups: (N,) group name of each record.
        fraction: share of the records to hold out, between 0 and 1.
        seed: decides which.

    Returns:
        Indices to train on and indices held out, both in order. No group has records on both sides.
    """
    names, member, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    wanted = fraction * len(groups)
    held: list[int] = []
    total = 0
    shuffled = np.random.default_rng(seed).permutation(len(names))
    for group in shuffled:
        if abs(total + sizes[group] - wanted) < abs(total - wanted):
            held.append(group)
            total += sizes[group]
    if not held:
        held = [min(shuffled, key=lambda group: sizes[group])]
    elif len(held) == len(names):
        held.remove(max(held, key=lambda group: sizes[group]))
    out = np.isin(member, held)
    return np.flatnonzero(~out), np.flatnonzero(out)


def sketch(text: str) -> np.ndarray:
    """Returns the smallest hashes of the text's runs of five words: a bottom-k sketch (Broder, 1997).

    Two texts share about as large a part of their sketches as of their runs of words, whatever the order of their
    paragraphs.
    """
    words = [zlib.crc32(word.encode("utf-8")) for word in re.findall(r"\w+", text.lower())]
    if not words:
        return np.empty(0, dtype=np.int64)
    values = np.array(words, dtype=np.uint64)
    width = min(WORDS_A_SHINGLE, len(values))
    mixed = np.zeros(len(values) - width + 1, dtype=np.uint64)
    for offset in range(width):  # overflow is meant: arithmetic modulo 2^64
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + len(mixed)]
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(mixed >> np.uint64(1))[:SKETCH_SIZE].astype(np.int64)


def find_near_duplicates(train: Dataset, held: Dataset, threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """Finds for each held-out text the most similar one to train on, by the sketches in the column ``sketch``.

    Returns:
        ``(held index, train index, similarity)`` of those at ``threshold`` or above; the similarity estimates the
        Jaccard index of the two sets of word runs, from 0 to 1.
    """
    sketches = [values for _, _, part in _sketches(held) for values in part]
    where: dict[int, list[int]] = {int(value): [] for values in sketches for value in values}
    wanted = np.array(sorted(where), dtype=np.int64)
    candidates: dict[int, np.ndarray] = {}
    for first, flat, part in _sketches(train):
        rows = np.repeat(np.arange(len(part)), [len(values) for values in part])
        hits = np.isin(flat, wanted)
        for value, row in zip(flat[hits].tolist(), rows[hits].tolist(), strict=True):
            if len(where[value]) < MOST_PLACES:
                where[value].append(first + row)
                candidates.setdefault(first + row, part[row])
    pairs = []
    for index, values in enumerate(sketches):
        shared = Counter(other for value in values.tolist() for other in where[value])
        best, similarity = -1, 0.0
        for other, _ in shared.most_common(MOST_COMPARED):
            union = np.union1d(values, candidates[other])[:SKETCH_SIZE]
            both = np.intersect1d(values, candidates[other])
            share = len(np.intersect1d(union, both)) / len(union)
            if share > similarity:
                best, similarity = other, share
        if similarity >= threshold:
            pairs.append((index, best, similarity))
    return pairs


def _sketches(table: Dataset) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """Yields some thousand rows at a time: the place of the first, their hashes laid out flat, and by row."""
    arrow = table.select_columns(["sketch"]).with_format("arrow")
    for first in range(0, len(table), ROWS_AT_ONCE):
        part = arrow[first : first + ROWS_AT_ONCE]["sketch"].combine_chunks()
        flat, bounds = part.flatten().to_numpy(zero_copy_only=False), part.offsets.to_numpy()
        yield first, flat, np.split(flat, bounds[1:-1] - bounds[0])
