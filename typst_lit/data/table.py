"""Records on disk: read and checked once, then memory-mapped from an Arrow table that `datasets` keeps.

The table has a column a field, and ``origin`` (file and place), ``reference`` (the Typst source, or empty) and
``faults`` (what is wrong with the row; empty when nothing is).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import Field, parse_record
from typst_lit.data.sources import RecordSource
from typst_lit.errors import UserError, listing

log = logging.getLogger(__name__)
FORMAT = "3"  # raise it when the table's columns or the checks change: old caches are then not used


def load_records(
    source: RecordSource,
    template: PromptTemplate,
    *,
    needs_reference: bool = True,
    on_invalid: Literal["error", "skip"] = "error",
    cache_dir: str | None = None,
) -> Dataset:
    """Reads every record of a source and returns the good ones.

    Raises:
        UserError: when any row is at fault and ``on_invalid`` is ``error`` (all faults are listed), or no row is good.
    """
    try:
        table = Dataset.from_generator(
            _checked_rows,
            features=_features(template.fields),
            cache_dir=cache_dir,
            gen_kwargs={"source": source, "fields": tuple(template.fields), "needs_reference": needs_reference},
            fingerprint=cache_key(FORMAT, source.fingerprint(), [vars(f) for f in template.fields], needs_reference),
        )
    except DatasetGenerationError as error:  # datasets wraps what the source raised
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    faulty = np.asarray(table.data.column("errors").combine_chunks().value_lengths()) > 0
    if not faulty.any():
        return table
    bad = table.select(np.flatnonzero(faulty)).select_columns(["origin", "errors"])
    faults = [f"{row['origin']}: {fault}" for row in bad for fault in row["errors"]]
    counts = f"{len(bad)} of {len(table)} records can't be used"
    if on_invalid == "error" or faulty.all():
        way_out = "" if faulty.all() else ", or leave them out with --data.on_invalid skip"
        raise UserError(f"{counts}:\n{listing(faults, limit=len(faults))}\nMend them{way_out}.")
    log.warning("%s and are left out:\n%s", counts, listing(faults))
    return table.select(np.flatnonzero(~faulty))


def column(table: Dataset, name: str) -> np.ndarray:
    """Returns a column of plain values: (N,)."""
    return np.asarray(table.with_format("numpy")[name][:])


def record_origins(table: Dataset, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Returns where the records at some indices of a table come from; the rest of their rows is not read."""
    return list(table.select_columns(["origin"]).select(indices)["origin"])


def cache_key(*parts: Any) -> str:
    """Returns a short key for a cache, from plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _features(fields: Any) -> Features:
    columns = {field.name: Value("string" if field.kind == "text" else "int64") for field in fields}
    text = Value("string")
    return Features({**columns, "origin": text, "reference": text, "errors": List(text)})


def _checked_rows(source: RecordSource, fields: tuple[Field, ...], needs_reference: bool) -> Iterator[dict[str, Any]]:
    empty = True
    for row in source.rows():
        empty = False
        parsed = parse_record(row.value, fields, needs_reference)
        faults = [row.error] if row.error else list(parsed.errors)
        yield {**parsed.fields, "origin": row.origin, "reference": parsed.reference, "errors": faults}
    if empty:
        raise UserError("the data holds no record.")
