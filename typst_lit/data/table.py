"""Records in an Arrow table: read and checked once, cached by `datasets`, and memory-mapped from then on.

The table has one column per field, and ``origin`` (file, and line or index), ``reference`` (the Typst source, or empty
text) and ``errors`` (what is wrong with the record; empty if it is valid).
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
from typst_lit.errors import UserError, listing, plural

log = logging.getLogger(__name__)
FORMAT = "3"  # increase it when the columns or the checks change, so that older caches are not used


def load_records(
    source: RecordSource,
    template: PromptTemplate,
    *,
    needs_reference: bool = True,
    on_invalid: Literal["error", "skip"] = "error",
    skip_setting: str | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Reads and checks all records of a source and returns the valid ones.

    Args:
        source: where the records come from.
        template: its fields are those of a record.
        needs_reference: whether each record must have a Typst source.
        on_invalid: whether invalid records are an error, or are logged and skipped.
        skip_setting: the setting, with its value, that skips them, for the error's hint.
        cache_dir: where the table is cached; by default the cache of the datasets library.

    Raises:
        UserError: if a record is invalid and ``on_invalid`` is ``error`` (all errors are listed), or none is valid.

    >>> from importlib.resources import files
    >>> from typst_lit.data import FileSource, ReportPrompt
    >>> source = FileSource(str(files("typst_lit.data") / "samples" / "held_out.json"))
    >>> table = load_records(source, ReportPrompt())
    >>> table.column_names[-4:]
    ['contents_txt', 'origin', 'reference', 'errors']
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
    is_invalid = np.asarray(table.data.column("errors").combine_chunks().value_lengths()) > 0
    if not is_invalid.any():
        return table
    invalid = table.select(np.flatnonzero(is_invalid)).select_columns(["origin", "errors"])
    errors = [f"{row['origin']}: {error}" for row in invalid for error in row["errors"]]
    counts = f"{len(invalid)} of {plural(len(table), 'record')} {'is' if len(invalid) == 1 else 'are'} invalid"
    if on_invalid == "error" or is_invalid.all():
        or_skip = f", or skip them with `{skip_setting}`" if skip_setting and not is_invalid.all() else ""
        raise UserError(f"{counts}:\n{listing(errors, limit=len(errors))}", hint=f"Fix them{or_skip}.")
    log.warning("%s and skipped:\n%s", counts, listing(errors))
    return table.select(np.flatnonzero(~is_invalid))


def column(table: Dataset, name: str) -> np.ndarray:
    """Returns a column of plain values: (N,)."""
    return np.asarray(table.with_format("numpy")[name][:])


def record_origins(table: Dataset, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Returns where the records at some indices of a table come from. No other column is read."""
    return list(table.select_columns(["origin"]).select(indices)["origin"])


def cache_key(*values: Any) -> str:
    """Returns a short key that changes whenever one of some plain values does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _features(fields: Sequence[Field]) -> Features:
    columns = {field.name: Value("string" if field.kind == "text" else "int64") for field in fields}
    text = Value("string")
    return Features({**columns, "origin": text, "reference": text, "errors": List(text)})


def _checked_rows(source: RecordSource, fields: tuple[Field, ...], needs_reference: bool) -> Iterator[dict[str, Any]]:
    is_empty = True
    for row in source.rows():
        is_empty = False
        record = parse_record(row.value, fields, needs_reference)
        errors = [row.error] if row.error else list(record.errors)
        yield {**record.fields, "origin": row.origin, "reference": record.reference, "errors": errors}
    if is_empty:
        raise UserError("the data contains no records.")
