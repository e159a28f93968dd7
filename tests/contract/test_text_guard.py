"""What may follow under a text contract, where training pairs are not needed to see it."""

from __future__ import annotations

import pytest

from typst_lit.contract.record_text import RecordText
from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import TextGuard, TextState
from typst_lit.typesetting.syntax import START, read_pieces

NAMES = TextContract(2, "", 1.0, names=("heading", "project", "set", "text"), values=("project",))
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
    ],
)
def test_names_are_those_of_the_training_pairs_and_functions_are_called(source, accepted) -> None:
    assert accepts(NAMES, source) is accepted


def test_a_contract_stored_without_values_does_not_restrict_them() -> None:
    stored = NAMES.to_json()
    del stored["values"]
    assert accepts(TextContract.from_json(stored), "#text")


@pytest.mark.parametrize(
    ("source", "accepted"),
    [("The club's men-at-arms.", True), ("The\nclub's men-at-arms.", True), ("The club' s men-at-arms.", False)],
)
def test_white_space_does_not_divide_a_word_with_an_apostrophe(source, accepted) -> None:
    assert accepts(EXACT, source) is accepted
