"""The texts of a record, and of the style, in the form in which a document's visible text is compared with them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from typst_lit.metrics.functional import IMAGE_FILE

BODY, FILE, STYLE, FREE = (
    "body",
    "file",
    "style",
    "free",
)  # sources of a document's words, in addition to the names of the fields
_NUMBERING = re.compile(r"(?:\d+ )+")


class Phrase(NamedTuple):
    """A text that a document may show: a line of the record's long text, another field's value, or a word of the style.

    Attributes:
        source: `BODY`, the name of a field, `FILE` for the name of an image in the long text, or `STYLE`.
        text: its letters and digits, normalized, with one space where there is anything else between them.
        raw: the text itself.
        offsets: for each character of ``text``, where it is in ``raw``.
        line: of a line, its number; else -1.
    """

    source: str
    text: str
    raw: str
    offsets: tuple[int, ...]
    line: int = -1

    def separators(self, position: int) -> str:
        """Returns what is between two words in ``raw``, where ``text`` has a space, or after the last word."""
        start = self.offsets[position - 1] + 1 if position else 0
        if position >= len(self.text):
            return self.raw[start:]
        if position and self.text[position] != " ":
            return ""
        return self.raw[start : self.offsets[position + 1 if position else 0]]


@cache
def normalized(character: str) -> str:
    """Returns the letters and digits that a character stands for, without accents and case; empty for all others.

    >>> normalized("É"), normalized("ﬁ"), normalized("-")
    ('e', 'fi', '')
    """
    decomposed = unicodedata.normalize("NFKD", character).casefold()
    return "".join(letter for letter in decomposed if letter.isalnum())


def is_separator(character: str) -> bool:
    """Returns whether a character separates words; accents, which are characters of their own in some texts, do not."""
    return not normalized(character) and not unicodedata.combining(character)


def phrase(source: str, raw: str, line: int = -1) -> Phrase:
    """Returns the phrase of a text.

    >>> phrase("title", "Hill  Farms, 2025").text
    'hill farms 2025'
    """
    text: list[str] = []
    offsets: list[int] = []
    is_separated = False
    for offset, character in enumerate(raw):
        if is_separator(character):
            is_separated = bool(text)
            continue
        for letter in normalized(character):
            if is_separated:
                text.append(" ")
                offsets.append(offset - 1)
                is_separated = False
            text.append(letter)
            offsets.append(offset)
    return Phrase(source, "".join(text), raw, tuple(offsets), line)


class RecordText:
    """The phrases of a record and of a style.

    Args:
        fields: the record.
        body_field: name of the field with the long text.
        style_words: words that documents may show in addition.

    Attributes:
        phrases: all phrases, the lines of the long text first.
        num_lines: how many of them are lines.

    Example:
        >>> text = RecordText({"title": "Rain", "text": "1. It rains.\\n\\nOften."}, "text", ["page"])
        >>> [phrase.text for phrase in text.phrases], text.num_lines
        (['1 it rains', 'often', 'rain', 'page'], 2)
    """

    def __init__(self, fields: Mapping[str, Any], body_field: str, style_words: Iterable[str] = ()) -> None:
        body = str(fields.get(body_field, ""))
        files = dict.fromkeys(match[0] for match in IMAGE_FILE.finditer(body))
        lines = [line for line in map(str.strip, IMAGE_FILE.sub(" ", body).splitlines()) if phrase(BODY, line).text]
        self.num_lines = len(lines)
        self.phrases = [phrase(BODY, line, index) for index, line in enumerate(lines)]
        self.phrases += [phrase(name, str(value)) for name, value in fields.items() if name != body_field]
        self.phrases += [phrase(FILE, file) for file in files]
        self.phrases += [phrase(STYLE, word) for word in style_words]
        self._starts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, item in enumerate(self.phrases):
            if item.text:
                for position in _start_positions(item):
                    self._starts[item.text[position]].append((number, position))

    def starts(self, letter: str) -> Iterator[tuple[int, int, Phrase]]:
        """Yields each phrase that may start with a letter: its number, and the position of the letter in its text."""
        for number, position in self._starts.get(letter, ()):
            yield number, position, self.phrases[number]


def _start_positions(item: Phrase) -> list[int]:
    """Returns where a phrase may start: typesetting may number a line itself."""
    numbering = _NUMBERING.match(item.text) if item.source == BODY else None
    return [0, numbering.end()] if numbering and numbering.end() < len(item.text) else [0]
