from __future__ import annotations

import pytest

from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.records import parse_record

GOOD = {
    "starting_page": 1,
    "academic_year": "2025-26",
    "department": "Physics",
    "project_title": "Title",
    "contents_txt": "Text",
}
FIELDS = ReportPrompt.fields


def errors(raw, needs_reference=False):
    return parse_record(raw, FIELDS, needs_reference).errors


def test_a_pair_and_a_bare_record_give_the_same_fields() -> None:
    pair = parse_record({"input": GOOD, "output": "= Title"}, FIELDS, needs_reference=True)
    bare = parse_record(GOOD, FIELDS, needs_reference=False)
    assert pair.fields == bare.fields == GOOD
    assert pair.reference == "= Title" and bare.reference == ""
    assert not pair.errors and not bare.errors


@pytest.mark.parametrize("value", ["7", " 7 ", 7])
def test_pages_may_be_digits_in_text(value) -> None:
    assert parse_record({**GOOD, "starting_page": value}, FIELDS, False).fields["starting_page"] == 7


@pytest.mark.parametrize("value", [-1, 1.0, True, "seven", "²", "", [1], "9" * 30, 2**63, "-3"])
def test_numbers_that_are_invalid(value) -> None:
    (error,) = errors({**GOOD, "starting_page": value})
    assert "'starting_page'" in error and "whole number" in error


@pytest.mark.parametrize("value", ["", "  \n\t", None, 5, ["a"], "\ud800 half"])
def test_texts_that_are_invalid(value) -> None:
    (error,) = errors({**GOOD, "contents_txt": value})
    assert "'contents_txt'" in error


def test_all_errors_of_a_record_are_returned() -> None:
    messages = errors({"input": {**GOOD, "department": "", "starting_page": "x"}, "output": " "}, needs_reference=True)
    assert len(messages) == 3
    assert errors({"input": GOOD}, needs_reference=True) == (
        "field 'output' is missing: a training pair needs the Typst source of its record",
    )


@pytest.mark.parametrize("raw", ["text", 3, None, [GOOD], {"input": "text"}])
def test_values_that_are_not_records(raw) -> None:
    (error,) = errors(raw)
    assert "object" in error


def test_the_error_of_a_misspelled_field_lists_the_fields_of_the_record() -> None:
    wrong = {**GOOD, "projct_title": "T"}
    del wrong["project_title"]
    (error,) = errors(wrong)
    assert "'project_title' is missing" in error and "projct_title" in error
