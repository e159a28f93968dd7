"""Holding records out for validation without leaking what was learned into what is measured."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

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


def near_duplicates(
    train: Sequence[Sequence[int]], held: Sequence[Sequence[int]], threshold: float = 0.5
) -> list[tuple[int, int, float]]:
    """Finds for each held-out sketch the most similar one to train on.

    Returns:
        ``(held index, train index, similarity)`` of those at ``threshold`` or above; the similarity estimates the
        Jaccard index of the two sets of word runs, from 0 to 1.
    """
    wanted = {value for values in held for value in values}
    where: dict[int, list[int]] = {value: [] for value in wanted}
    for at in range(0, len(train), ROWS_AT_ONCE):  # row by row, a table of a million takes minutes
        for index, values in enumerate(train[at : at + ROWS_AT_ONCE], at):
            for value in wanted.intersection(values):
                if len(where[value]) < MOST_PLACES:
                    where[value].append(index)
    pairs = []
    for index, values in enumerate(held):
        shared: dict[int, int] = defaultdict(int)
        for value in values:
            for other in where.get(value, ()):
                shared[other] += 1
        best, similarity = -1, 0.0
        for other in sorted(shared, key=lambda other: -shared[other])[:MOST_COMPARED]:
            union = sorted({*values, *train[other]})[:SKETCH_SIZE]
            both = len(set(union) & set(values) & set(train[other])) / len(union)
            if both > similarity:
                best, similarity = other, both
        if similarity >= threshold:
            pairs.append((index, best, similarity))
    return pairs
