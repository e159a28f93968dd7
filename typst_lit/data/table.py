"""Records in an Arrow table: read and checked once, cached by `datasets`, and memory-mapped from then on.

The table has one column per field, and ``origin`` (file, and line or index), ``reference`` (the Typst source, or empty
text) and ``errors`` (what is wrong with the record; empty if it is valid).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from typst_lit._compat.datasets import generator_cache
from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import Field, parse_record
from typst_lit.data.sources import RecordSource
from typst_lit.errors import UserError, listing, plural
from typst_lit.files import cache_key

log = logging.getLogger(__name__)
# What reading a file of the cache raises that was cut or emptied; ValueError includes ArrowInvalid and JSONDecodeError
DAMAGED_CACHE_ERRORS = (OSError, ValueError)
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
    table = _cached_table(source, template.fields, needs_reference, cache_dir)
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


def _cached_table(
    source: RecordSource, fields: Sequence[Field], needs_reference: bool, cache_dir: str | None
) -> Dataset:
    """Returns the table of a source. One in the cache that is damaged, as by a full disk, is created again."""
    key = cache_key(FORMAT, source.fingerprint(), [vars(field) for field in fields], needs_reference)

    def load() -> Dataset:
        try:
            return Dataset.from_generator(
                _checked_rows,
                features=_features(fields),
                cache_dir=cache_dir,
                gen_kwargs={"source": source, "fields": tuple(fields), "needs_reference": needs_reference},
                fingerprint=key,
            )
        except DatasetGenerationError as error:  # datasets wraps what the source raised
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise

    directory = generator_cache(cache_dir, key)
    was_cached = directory.is_dir()
    try:
        return load()
    except DAMAGED_CACHE_ERRORS as error:
        if not was_cached:
            raise
        log.warning("%s: the cached records are damaged (%s). They are read again.", directory, error)
        shutil.rmtree(directory, ignore_errors=True)
        return load()


def cached_map(table: Dataset, function: Callable[..., Any], new_fingerprint: str, **options: Any) -> Dataset:
    """Returns ``table.map(function, ...)``. A result in the cache that is damaged is computed again.

    Args:
        table: a table that is cached in a file.
        function: what is applied.
        new_fingerprint: key of the result.
        **options: of ``map``.
    """
    directories = {Path(file["filename"]).parent for file in table.cache_files}
    cached = [file for path in directories for file in path.glob(f"cache-{new_fingerprint}*.arrow")]
    try:
        return table.map(function, new_fingerprint=new_fingerprint, **options)
    except DAMAGED_CACHE_ERRORS as error:
        if not cached:
            raise
        log.warning("%s: the cached table is damaged (%s). It is computed again.", cached[0], error)
        return table.map(function, new_fingerprint=new_fingerprint, load_from_cache_file=False, **options)


def column(table: Dataset, name: str) -> np.ndarray:
    """Returns a column of plain values: (N,)."""
    return np.asarray(table.with_format("numpy")[name][:])


def record_origins(table: Dataset, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Returns where the records at some indices of a table come from. No other column is read."""
    return list(table.select_columns(["origin"]).select(indices)["origin"])


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
