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


def faults(raw, needs_reference=False):
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
def test_pages_that_are_no_page(value) -> None:
    (fault,) = faults({**GOOD, "starting_page": value})
    assert "'starting_page'" in fault and "whole number" in fault


@pytest.mark.parametrize("value", ["", "  \n\t", None, 5, ["a"], "\ud800 half"])
def test_texts_that_are_no_text(value) -> None:
    (fault,) = faults({**GOOD, "contents_txt": value})
    assert "'contents_txt'" in fault


def test_all_faults_of_a_record_are_told_at_once() -> None:
    found = faults({"input": {**GOOD, "department": "", "starting_page": "x"}, "output": " "}, needs_reference=True)
    assert len(found) == 3
    assert faults({"input": GOOD}, needs_reference=True) == (
        "field 'output' is missing: a training pair needs the Typst source of its record",
    )


@pytest.mark.parametrize("raw", ["text", 3, None, [GOOD], {"input": "text"}])
def test_values_that_are_no_record(raw) -> None:
    (fault,) = faults(raw)
    assert "object" in fault


def test_a_misspelt_field_shows_what_is_there() -> None:
    wrong = {**GOOD, "projct_title": "T"}
    del wrong["project_title"]
    (fault,) = faults(wrong)
    assert "'project_title' is missing" in fault and "projct_title" in fault
