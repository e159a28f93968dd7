"""Escaped text is shown by Typst as it is, whatever it means as code."""

from __future__ import annotations

import pytest

from benchmarks.hostile_texts import HOSTILE_TEXTS
from typst_lit.typesetting.escaping import escape_markup, escape_string
from typst_lit.typesetting.typesetter import Typesetter


def letters(text: str) -> str:
    """Returns the characters that the text layer of a PDF keeps, whatever the fonts."""
    return "".join(character for character in text if character.isascii() and not character.isspace())


@pytest.fixture(scope="module")
def typesetter():
    with Typesetter(workers=1) as typesetter:
        yield typesetter


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_escaped_text_is_shown_as_it_is(typesetter, text):
    quotes = str.maketrans("“”‘’", "\"\"''")
    markup = typesetter.compile(f"#set text(ligatures: false)\n#set page(width: 60em)\nText: {escape_markup(text)} end")
    assert markup.ok, markup.error
    assert letters(markup.body.translate(quotes)) == letters(f"Text: {text} end")
    string = typesetter.compile(f'#set page(width: 60em)\n#let x = "{escape_string(text)}"\nText: #x end')
    assert string.ok, string.error
    assert letters(string.body.translate(quotes)) == letters(f"Text: {text} end")
