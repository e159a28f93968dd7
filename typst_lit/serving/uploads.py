"""The records of a file that a visitor of the web page uploads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.sources import FileSource
from typst_lit.errors import plural
from typst_lit.inference.records import validate_record

MAX_RECORDS = 1000  # of the selection list
MAX_ERRORS = 20


def read_upload(name: str, content: bytes, template: PromptTemplate) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads and validates the records of a file as `typst_lit generate` reads them.

    Args:
        name: the name of the file, for the messages.
        content: JSON: a list of records, one record, or one per line.
        template: the prompt template, which says which fields there are.

    Returns:
        The fields of the first `MAX_RECORDS` valid records, and messages about the others.

    >>> from typst_lit.data.prompts import FormatPrompt
    >>> read_upload("rain.json", b'[{"title": "Rain"}, {"title": 5}]', FormatPrompt("{title}"))
    ([{'title': 'Rain'}], ["rain.json, record 1 (line 1): field 'title' must be text, not a number"])
    """
    records: list[dict[str, Any]] = []
    messages: list[str] = []
    num_left_out = 0
    with tempfile.TemporaryDirectory(prefix="typst-lit-upload-") as directory:
        path = Path(directory) / "upload.json"
        path.write_bytes(content)
        for row in FileSource(str(path)).rows():
            origin = name + row.origin.removeprefix(str(path))
            fields, errors = validate_record(row.value, template) if row.error is None else ({}, [row.error])
            if errors:
                messages.append(f"{origin}: {'; '.join(errors)}")
            elif len(records) < MAX_RECORDS:
                records.append(fields)
            else:
                num_left_out += 1
    if len(messages) > MAX_ERRORS:
        messages[MAX_ERRORS:] = [f"{name}: {plural(len(messages) - MAX_ERRORS, 'more invalid record')}."]
    if num_left_out:
        messages.append(f"{name}: only the first {MAX_RECORDS} records are listed; {num_left_out} are left out.")
    return records, messages
