"""What may follow under a text contract, where training pairs are not needed to see it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from typst_lit.contract.phrase_matching import PhraseMatcher
from typst_lit.contract.record_text import RecordText
from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import TextGuard, TextState
from typst_lit.typesetting.syntax import START, read_pieces

NAMES = TextContract(
    2,
    "",
    1.0,
    names=("heading", "project", "set", "text"),
    rules=("set text",),
    values=("project",),
    fields=("lighten",),
)
EXACT = TextContract(2, "", 1.0, contexts=(("", ("body",)),), copied=True, exact=True)


def accepts(contract: TextContract, source: str, line: str = "The club's men-at-arms.") -> bool:
    read = read_pieces(START, source + "\n\n")
    assert read is not None
    return TextGuard(contract, RecordText({"text": line}, "text")).read(TextState(), read[1]) is not None


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ("#text(red)[]", True),
        ("#project", True),
        ("#text", False),  # shows the word "text"
        ("#set text(red)", True),
        ("#set enum(tight: true)", False),
        ("#enum[]", False),
        ("#project.lighten(1%)", True),
        ("#project.red", False),
        ("#project. Red", True),  # the end of a sentence
        ("#text(red.lighten(1%))[]", True),
        ("#text(red.darken(1%))[]", False),
        ("#text(..red)[]", True),  # the elements of a list
    ],
)
def test_names_are_those_of_the_training_pairs_and_functions_are_called(source, accepted) -> None:
    assert accepts(NAMES, source) is accepted


def test_a_contract_stored_without_values_and_fields_does_not_restrict_them() -> None:
    stored = NAMES.to_json()
    del stored["values"], stored["fields"]
    contract = TextContract.from_json(stored)
    assert accepts(contract, "#text")
    assert accepts(contract, "#project.red")


@pytest.mark.parametrize(("start", "names"), [("#project.", ["lighten"]), ("#text(red.li", ["ghten"])])
def test_the_names_of_fields_are_suggested(start, names) -> None:
    read = read_pieces(START, start)
    assert read is not None
    assert TextGuard(NAMES, RecordText({}, "text")).next_names(read[0]) == names


@pytest.mark.parametrize("start", ["#project.d", "#text(red.d", "#text(red.lightens"])
def test_a_name_is_refused_before_it_is_complete(start) -> None:
    read = read_pieces(START, start)
    assert read is not None
    assert not TextGuard(NAMES, RecordText({}, "text")).may_continue(TextState(), read[0])


def test_the_language_of_raw_text_is_not_visible() -> None:
    contract = replace(EXACT, contexts=(("raw", ("body",)),))
    assert accepts(contract, "```typ The club's men-at-arms. ```")
    assert not accepts(contract, "``` typ The club's men-at-arms. ```")


@pytest.mark.parametrize(
    ("source", "accepted"),
    [("The club's men-at-arms.", True), ("The\nclub's men-at-arms.", True), ("The club' s men-at-arms.", False)],
)
def test_white_space_does_not_divide_a_word_with_an_apostrophe(source, accepted) -> None:
    assert accepts(EXACT, source) is accepted


def test_after_a_line_that_was_skipped_the_next_one_may_follow() -> None:
    contract = TextContract(2, "", 1.0, contexts=(("", ("body",)),), ordered=True, copied=True, min_shown=1.0)
    matcher = PhraseMatcher(contract, RecordText({"text": "One.\nTwo.\nThree.\nFour."}, "text"))
    assert matcher.is_next(0, used=0b0)
    assert not matcher.is_next(1, used=0b0)
    assert matcher.is_next(3, used=0b101)  # the second one deviated
    assert not matcher.is_next(1, used=0b101)
