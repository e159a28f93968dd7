"""What a record is, and every way in which one can be wrong.

A record is a mapping of named fields (`Field`); a pair adds the Typst source that a person made of it. On disk a pair
is ``{"input": {field: value, ...}, "output": "..."}``; a record to predict may also be the bare mapping of fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

MAX_INTEGER = 2**63 - 1  # what Typst's integers, and Arrow's, can hold


@dataclass(frozen=True)
class Field:
    """One named value of a record.

    Attributes:
        name: the key in the JSON object.
        kind: ``text``, or ``number`` for a non-negative whole number (digits in a string are accepted).
        required: whether it must be there and not blank. A field that is not required is empty text, or 0.
    """

    name: str
    kind: Literal["text", "number"] = "text"
    required: bool = True


@dataclass(frozen=True)
class ParsedRecord:
    """A record after the check: its fields, its reference (empty where there is none), and what is wrong with it."""

    fields: dict[str, Any]
    reference: str
    errors: tuple[str, ...]


def parse_record(raw: object, fields: Sequence[Field], needs_reference: bool) -> ParsedRecord:
    """Checks one value as it was read and returns its fields in the order of ``fields``.

    Nothing is raised: a fault is text that names the field, so that all faults of a file can be told at once.
    """
    values: dict[str, Any] = {field.name: "" if field.kind == "text" else 0 for field in fields}
    if not isinstance(raw, dict):
        return ParsedRecord(values, "", (f"a record must be an object with fields, not {type_name(raw)}",))
    faults: list[str] = []
    given = raw
    if "input" in raw and (isinstance(raw["input"], dict) or "input" not in values):
        given = raw["input"]
        if not isinstance(given, dict):
            return ParsedRecord(values, "", (f"'input' must be an object with fields, not {type_name(given)}",))
    for field in fields:
        value = given.get(field.name)
        if value is None:
            if field.required:
                there = ", ".join(str(name) for name in list(given)[:12]) or "nothing"
                there = there.encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs can't be stored
                faults.append(f"field '{field.name}' is missing (there is: {there})")
            continue
        fault = None
        if field.kind == "number":
            values[field.name], fault = _whole_number(value)
        else:
            values[field.name], fault = _text(value, blank_allowed=not field.required)
        if fault:
            faults.append(f"field '{field.name}' {fault}")
    reference = ""
    if raw.get("output") is not None:
        reference, fault = _text(raw["output"], blank_allowed=False)
        if fault:
            faults.append(f"field 'output' {fault}")
    elif needs_reference:
        faults.append("field 'output' is missing: a training pair needs the Typst source of its record")
    return ParsedRecord(values, reference, tuple(faults))


def type_name(value: object) -> str:
    """Returns a JSON value's type as a user would say it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)


def _whole_number(value: object) -> tuple[int, str | None]:
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


def _text(value: object, blank_allowed: bool) -> tuple[str, str | None]:
    if not isinstance(value, str):
        return "", f"must be text, not {type_name(value)}"
    if not blank_allowed and not value.strip():
        return "", "is blank"
    if "\0" in value:
        return "", f"holds a NUL character at {value.index(chr(0))}: remove it"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return "", f"holds half of a surrogate pair at character {error.start}: write the whole character"
    return value, None


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of over 40 digits"
    return text if len(text) <= 40 else text[:37] + "..."
