"""Tables of records to tables of token ids: in several processes, and each record only once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from typst_lit._compat.datasets import fingerprint
from typst_lit.data.encoding import Encoder
from typst_lit.data.minhash import minhash_signature
from typst_lit.data.table import cached_map
from typst_lit.files import cache_key

FORMAT = "tokenize-4"  # change it when the columns or their values change, so that older caches are not used
MIN_ROWS_PER_PROCESS = 2000  # with fewer rows, starting one more process takes longer than it saves
# A process keeps the pages of the table's file that it has mapped in its memory until it ends, so that new processes
# are started for each part. If the run stops, the finished parts are not tokenized again.
ROWS_PER_PART = 100_000


def tokenize(table: Dataset, encoder: Encoder, num_proc: int | None = None) -> Dataset:
    """Returns the table with the columns ``input_ids``, ``prompt_length``, ``length`` and ``minhash``.

    They are computed once per record, encoder and `FORMAT`, and read from the cache of the table from then on.

    Args:
        table: a table of `load_records`.
        encoder: its template has the fields of the table.
        num_proc: the number of processes; by default as many as the cores and the number of rows are worth.
    """
    num_proc = num_proc or max(1, min(os.cpu_count() or 1, len(table) // MIN_ROWS_PER_PROCESS))
    names = [field.name for field in encoder.template.fields]
    # Only the new columns are written: those of the table are put next to them as they are.
    texts = table.select_columns([*names, "reference"])
    parts = [
        cached_map(
            texts.select(range(first, min(first + ROWS_PER_PART, len(table)))),
            _tokenize_rows,
            batched=True,
            batch_size=1000,
            num_proc=num_proc if num_proc > 1 else None,
            fn_kwargs={"encoder": encoder, "names": names},
            remove_columns=[*names, "reference"],
            new_fingerprint=cache_key(FORMAT, fingerprint(table), encoder.fingerprint, first),
            desc="Tokenizing" if len(table) <= ROWS_PER_PART else f"Tokenizing from record {first:,}",
        )
        for first in range(0, len(table), ROWS_PER_PART)
    ]
    joined = concatenate_datasets([table, concatenate_datasets(parts)], axis=1)
    assert isinstance(joined, Dataset)
    return joined


def _tokenize_rows(columns: Mapping[str, list[Any]], encoder: Encoder, names: Sequence[str]) -> dict[str, list[Any]]:
    records = [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]
    encoded = encoder.encode(records, columns["reference"])
    return {
        # As arrays: lists would be checked number by number before they are written.
        "input_ids": [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]],
        "prompt_length": encoded["prompt_length"],
        "length": [len(ids) for ids in encoded["input_ids"]],
        "minhash": [minhash_signature(record[encoder.template.body_field]) for record in records],
    }
