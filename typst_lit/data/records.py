"""What a record is, and all that can be wrong with one.

A record is a mapping of named fields (`Field`); a pair adds the Typst source that a person wrote for it. On disk, a
pair is ``{"input": {field: value, ...}, "output": "..."}``; a record to predict may also be the bare mapping of fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

MAX_INTEGER = 2**63 - 1  # of Typst's integers, and of Arrow's


@dataclass(frozen=True)
class Field:
    """One named value of a record.

    Attributes:
        name: the key in the JSON object.
        kind: ``text``, or ``number`` for a non-negative integer (digits in a string are accepted).
        required: whether it must be present and not blank. By default, an optional field is empty text, or 0.

    >>> parse_record({"page": "7"}, [Field("page", "number"), Field("title", required=False)], needs_reference=False)
    ParsedRecord(fields={'page': 7, 'title': ''}, reference='', errors=())
    """

    name: str
    kind: Literal["text", "number"] = "text"
    required: bool = True


@dataclass(frozen=True)
class ParsedRecord:
    """A record after the checks.

    Attributes:
        fields: its values; those that are missing or invalid are empty text, or 0.
        reference: its Typst source; empty if there is none.
        errors: what is wrong with it; empty if it is valid.
    """

    fields: dict[str, Any]
    reference: str
    errors: tuple[str, ...]


def parse_record(raw: object, fields: Sequence[Field], needs_reference: bool) -> ParsedRecord:
    """Checks one value as it was read and returns its fields in the order of ``fields``.

    Errors are returned, not raised, so that all errors of a file can be listed at once. Each names the field.

    Args:
        raw: the value of a `Row`.
        fields: the fields that a record has.
        needs_reference: whether it must have a Typst source.

    >>> parse_record({"input": {"title": " "}, "output": "= T"}, [Field("title")], needs_reference=True).errors
    ("field 'title' is blank",)
    """
    values: dict[str, Any] = {field.name: "" if field.kind == "text" else 0 for field in fields}
    if not isinstance(raw, dict):
        return ParsedRecord(values, "", (f"a record must be an object with fields, not {type_name(raw)}",))
    errors: list[str] = []
    record = raw
    if "input" in raw and (isinstance(raw["input"], dict) or "input" not in values):
        record = raw["input"]
        if not isinstance(record, dict):
            return ParsedRecord(values, "", (f"'input' must be an object with fields, not {type_name(record)}",))
    for field in fields:
        value = record.get(field.name)
        if value is None:
            if field.required:
                names = ", ".join(str(name) for name in list(record)[:12]) or "none"
                names = names.encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs can't be stored
                errors.append(f"field '{field.name}' is missing (fields of the record: {names})")
            continue
        error = None
        if field.kind == "number":
            values[field.name], error = _parse_integer(value)
        else:
            values[field.name], error = _parse_text(value, allow_blank=not field.required)
        if error:
            errors.append(f"field '{field.name}' {error}")
    reference = ""
    if raw.get("output") is not None:
        reference, error = _parse_text(raw["output"], allow_blank=False)
        if error:
            errors.append(f"field 'output' {error}")
    elif needs_reference:
        errors.append("field 'output' is missing: a training pair needs the Typst source of its record")
    return ParsedRecord(values, reference, tuple(errors))


def type_name(value: object) -> str:
    """Returns a JSON value's type in plain words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)


def _parse_integer(value: object) -> tuple[int, str | None]:
    if isinstance(value, str):
        digits = value.strip()
        if not (digits.isascii() and digits.isdigit()):
            return 0, f"must be a whole number of 0 or more, not the text {_short(value)}"
        value = int(digits) if len(digits) < 20 else MAX_INTEGER + 1
    if isinstance(value, bool) or not isinstance(value, int):
        return 0, f"must be a whole number of 0 or more, not {type_name(value)} ({_short(value)})"
    if not 0 <= value <= MAX_INTEGER:
        return 0, f"must be a whole number from 0 to {MAX_INTEGER}, not {_short(value)}"
    return value, None


def _parse_text(value: object, allow_blank: bool) -> tuple[str, str | None]:
    if not isinstance(value, str):
        return "", f"must be text, not {type_name(value)}"
    if not allow_blank and not value.strip():
        return "", "is blank"
    if "\0" in value:
        return "", f"contains a NUL character at position {value.index(chr(0))}: remove it"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return "", f"contains half of a surrogate pair at position {error.start}: write the complete character"
    return value, None


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
    return text if len(text) <= 40 else text[:37] + "..."
