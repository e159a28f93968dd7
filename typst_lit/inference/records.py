"""The records to generate documents for: read and validated once, before a model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import parse_record
from typst_lit.data.sources import FileSource
from typst_lit.errors import UserError, listing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputRecord:
    """A record that was validated.

    Attributes:
        fields: its values, by the names of the template's fields; of an invalid record, what was in the file.
        origin: where it came from: file, and line or index.
        errors: what is wrong with it.

    Example:
        >>> InputRecord({"title": "Rain"}, "records.json, record 0").fields["title"]
        'Rain'
    """

    fields: dict[str, Any]
    origin: str = ""
    errors: tuple[str, ...] = ()


def validate_record(record: object, template: PromptTemplate) -> tuple[dict[str, Any], list[str]]:
    """Returns a record's fields, and what is wrong with them.

    Args:
        record: the record, which may also be in ``{"input": ...}``.
        template: the prompt template, which says which fields there are.
    """
    parsed = parse_record(record, template.fields, needs_reference=False)
    return parsed.fields, list(parsed.errors)


def validate_records(records: Sequence[object], template: PromptTemplate) -> list[InputRecord]:
    """Validates records; those that already are an `InputRecord` are taken as they are.

    Raises:
        UserError: listing all errors of all records.
    """
    validated, errors = [], []
    for index, record in enumerate(records):
        if isinstance(record, InputRecord):
            validated.append(record)
            continue
        fields, record_errors = validate_record(record, template)
        validated.append(InputRecord(fields, f"record {index}"))
        errors += [f"record {index}: {error}" for error in record_errors]
    if errors:
        raise UserError(f"{_counted(len(errors), 'error')} in {_counted(len(records), 'record')}:\n{listing(errors)}")
    return validated


def read_records(path: str | Path, template: PromptTemplate, skip_invalid: bool = False) -> list[InputRecord]:
    """Reads and validates all records of a file: one, one in ``{"input": ...}``, a list of such, or one per line.

    Args:
        path: the file.
        template: the prompt template, which says which fields there are.
        skip_invalid: return invalid records with their errors, instead of raising an error. They get no document.

    Raises:
        UserError: listing all errors, each with its file and line or index.

    Example:
        >>> from importlib.resources import files
        >>> from typst_lit.data.prompts import ReportPrompt
        >>> records = read_records(str(files("typst_lit") / "data/samples/held_out.json"), ReportPrompt())
        >>> len(records), sorted(records[0].fields)[0]
        (15, 'academic_year')
    """
    records, errors = [], []
    for row in FileSource(str(path)).rows():
        fields, row_errors = validate_record(row.value, template) if row.error is None else ({}, [row.error])
        if row_errors:
            value = standard_json(row.value)
            fields = value if isinstance(value, dict) else {"value": value}
            fields = fields["input"] if isinstance(fields.get("input"), dict) else fields
        records.append(InputRecord(fields, row.origin, tuple(row_errors)))
        errors += [f"{row.origin}: {error}" for error in row_errors]
    if errors and skip_invalid:
        log.warning("%s: these records are skipped:\n%s", path, listing(errors))
    elif errors:
        raise UserError(f"{path}: {_counted(len(errors), 'error')}:\n{listing(errors)}")
    if not records:
        raise UserError(f"{path}: contains no records.")
    return records


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def standard_json(value: object) -> Any:
    """Returns an invalid record as every JSON reader accepts it: Python's also accepts NaN."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):  # TypeError: a value that Parquet has and JSON has not
        return str(value)
    return value
