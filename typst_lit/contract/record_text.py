"""The texts of a record, and of the style, in the form in which a document's visible text is compared with them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from typst_lit.metrics.functional import IMAGE_FILE

# sources of a document's words, in addition to the names of the fields
BODY, FILE, CODE, STYLE, FREE = "body", "file", "code", "style", "free"
_CALL = re.compile(r"#\w[\w.-]*\(")  # Typst code, at the start of a line
_CONTENT = re.compile(r"\[([^\[\]]*)\]")
_NAME = re.compile(r"(?<![\w-])[^\W\d][\w-]*")
_UNSAFE_NAMES = frozenset({
    "bibliography", "cbor", "csv", "eval", "import", "include", "json", "panic", "plugin", "read", "sys", "toml", "xml",
    "yaml",
})  # fmt: skip
_STRING = re.compile(r'"[^"]*"')
_NUMBERING = re.compile(r"(?:\d+ )+")


class Phrase(NamedTuple):
    """A text that a document may show: a line of the record's long text, another field's value, or a word of the style.

    Attributes:
        source: `BODY`, the name of a field, `FILE` for the name of an image in the long text, `CODE` for a text in
            Typst code of the long text, such as a caption, or `STYLE`.
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
        code_names: names in Typst code of the long text, without those of functions that read files or run code.
        required: the lines that documents show, as bits; those of Typst code, such as a figure, they may show.

    Example:
        >>> text = RecordText({"title": "Rain", "text": "1. It rains.\\n\\nOften."}, "text", ["page"])
        >>> [phrase.text for phrase in text.phrases], text.num_lines
        (['1 it rains', 'often', 'rain', 'page'], 2)
    """

    def __init__(self, fields: Mapping[str, Any], body_field: str, style_words: Iterable[str] = ()) -> None:
        body = str(fields.get(body_field, ""))
        files = dict.fromkeys(match[0] for match in IMAGE_FILE.finditer(body))
        lines = [line.strip() for line in IMAGE_FILE.sub(" ", body).splitlines()]
        shown = [pair for pair in zip(lines, _lines_in_code(lines), strict=True) if phrase(BODY, pair[0]).text]
        self.num_lines = len(shown)
        self.required = sum(1 << index for index, (_, is_code) in enumerate(shown) if not is_code)
        self.phrases = [phrase(BODY, line, index) for index, (line, _) in enumerate(shown)]
        self.phrases += [phrase(name, str(value)) for name, value in fields.items() if name != body_field]
        self.phrases += [phrase(FILE, file) for file in files]
        code = "\n".join(line for line, is_code in shown if is_code)
        self.code_names = names_in_code(code) - _UNSAFE_NAMES
        self.phrases += [phrase(CODE, match[1]) for match in _CONTENT.finditer(code)]
        self.phrases += [phrase(STYLE, word) for word in style_words]
        self._starts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, item in enumerate(self.phrases):
            if item.text:
                for position in start_positions(item):
                    self._starts[item.text[position]].append((number, position))

    def starts(self, letter: str) -> Iterator[tuple[int, int, Phrase]]:
        """Yields each phrase that may start with a letter: its number, and the position of the letter in its text."""
        for number, position in self._starts.get(letter, ()):
            yield number, position, self.phrases[number]


def start_positions(item: Phrase) -> list[int]:
    """Returns where a phrase may start: typesetting may number a line itself."""
    numbering = _NUMBERING.match(item.text) if item.source == BODY else None
    return [0, numbering.end()] if numbering and numbering.end() < len(item.text) else [0]


def names_in_code(text: str) -> frozenset[str]:
    r"""Returns the names in the lines of a text that are Typst code.

    >>> sorted(names_in_code("It rains.\n#image(\"a.png\", width: 2cm)"))
    ['image', 'width']
    """
    lines = [line.strip() for line in text.splitlines()]
    code = (line for line, is_code in zip(lines, _lines_in_code(lines), strict=True) if is_code)
    return frozenset(_NAME.findall(_STRING.sub("", _CONTENT.sub("", "\n".join(code)))))


def _lines_in_code(lines: Iterable[str]) -> list[bool]:
    """Returns which lines belong to a call of a Typst function, from its name to its last parenthesis.

    >>> _lines_in_code(["#figure(", "image(\\"a.png\\"),", "caption: [Rain]", ")", "It rains."])
    [True, True, True, True, False]
    """
    found, depth = [], 0
    for line in lines:
        is_code = depth > 0 or _CALL.match(line) is not None
        depth = max(0, depth + line.count("(") - line.count(")")) if is_code else 0
        found.append(is_code)
    return found
