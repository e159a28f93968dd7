"""Near-duplicate texts, found by MinHash signatures."""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from datasets import Dataset

from typst_lit.data.table import record_origins
from typst_lit.errors import listing

log = logging.getLogger(__name__)
NUM_HASHES = 32
SHINGLE_WORDS = 5
MAX_TEXTS_PER_HASH = 100  # texts that are compared for having a hash: where more texts have it, any of them serves
MAX_COMPARISONS_PER_TEXT = 10  # similarities that are computed: of the texts that share the most hashes
ROWS_PER_CHUNK = 10_000


def minhash_signature(text: str) -> np.ndarray:
    """Returns the smallest hashes of the text's shingles of five words: a bottom-k signature (Broder, 1997).

    Two texts share about as large a part of their signatures as of their shingles, whatever the order of their
    paragraphs.

    Returns:
        At most ``NUM_HASHES`` different int64 hashes, ascending; none if the text has no words.

    >>> len(minhash_signature("The last bus leaves at ten"))
    2
    """
    words = [zlib.crc32(word.encode("utf-8")) for word in re.findall(r"\w+", text.lower())]
    if not words:
        return np.empty(0, dtype=np.int64)
    values = np.array(words, dtype=np.uint64)
    width = min(SHINGLE_WORDS, len(values))
    hashes = np.zeros(len(values) - width + 1, dtype=np.uint64)
    for offset in range(width):  # overflow is intended: arithmetic modulo 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[offset : offset + len(hashes)]
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(hashes >> np.uint64(1))[:NUM_HASHES].astype(np.int64)


def find_near_duplicates(train: Dataset, held_out: Dataset, threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """Finds for each held-out text the most similar training text, by the signatures in the column ``minhash``.

    Returns:
        ``(held-out index, train index, similarity)`` of those at ``threshold`` or above; the similarity estimates the
        Jaccard index of the two sets of shingles, from 0 to 1.

    >>> train = Dataset.from_dict({"minhash": [minhash_signature("The last bus leaves the town at ten")]})
    >>> held_out = Dataset.from_dict({"minhash": [minhash_signature("the last bus leaves the town at noon")]})
    >>> find_near_duplicates(train, held_out)
    [(0, 0, 0.6)]
    """
    signatures = [signature for _, _, chunk in _read_signatures(held_out) for signature in chunk]
    train_indices: dict[int, list[int]] = {int(value): [] for signature in signatures for value in signature}
    held_out_hashes = np.array(sorted(train_indices), dtype=np.int64)
    candidates: dict[int, np.ndarray] = {}
    for first, hashes, chunk in _read_signatures(train):
        rows = np.repeat(np.arange(len(chunk)), [len(signature) for signature in chunk])
        shared = np.isin(hashes, held_out_hashes)
        for value, row in zip(hashes[shared].tolist(), rows[shared].tolist(), strict=True):
            if len(train_indices[value]) < MAX_TEXTS_PER_HASH:
                train_indices[value].append(first + row)
                candidates.setdefault(first + row, chunk[row])
    pairs = []
    for index, signature in enumerate(signatures):
        num_shared = Counter(candidate for value in signature.tolist() for candidate in train_indices[value])
        best, best_similarity = -1, 0.0
        for candidate, _ in num_shared.most_common(MAX_COMPARISONS_PER_TEXT):
            estimate = similarity(signature, candidates[candidate])
            if estimate > best_similarity:
                best, best_similarity = candidate, estimate
        if best_similarity >= threshold:
            pairs.append((index, best, best_similarity))
    return pairs


def warn_of_near_duplicates(train: Dataset, held_out: Dataset) -> None:
    """Logs which held-out records have a near-duplicate among the training records."""
    pairs = find_near_duplicates(train, held_out)
    if not pairs:
        return
    held_out_indices, train_indices, similarities = zip(*pairs, strict=True)
    origins = zip(
        record_origins(held_out, held_out_indices), record_origins(train, train_indices), similarities, strict=True
    )
    lines = [f"{origin} is similar to {duplicate} ({similarity:.2f})" for origin, duplicate, similarity in origins]
    log.warning(
        "%d of %d held-out records %s a near-duplicate among the training records: val_loss will look better than it "
        "is. Hold out complete groups with `data.group_by`.\n%s",
        len(pairs),
        len(held_out),
        "has" if len(pairs) == 1 else "have",
        listing(lines, 10),
    )


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the estimated Jaccard index of the shingles of two texts with these signatures, from 0 to 1."""
    union = np.union1d(first, second)[:NUM_HASHES]
    return len(np.intersect1d(union, np.intersect1d(first, second))) / len(union)


def _read_signatures(table: Dataset) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
    """Yields chunks of rows: the index of the first row, the hashes of all rows laid out flat, and those per row."""
    arrow = table.select_columns(["minhash"]).with_format("arrow")
    for first in range(0, len(table), ROWS_PER_CHUNK):
        values = arrow[first : first + ROWS_PER_CHUNK]["minhash"].combine_chunks()
        flat, offsets = values.flatten().to_numpy(zero_copy_only=False), values.offsets.to_numpy()
        yield first, flat, np.split(flat, offsets[1:-1] - offsets[0])
