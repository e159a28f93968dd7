"""Escaping: text as Typst source that shows it, whatever its characters mean in Typst."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[\\#$`~*_]|[<@](?=[\w-])|/(?=[/*])|(?<=/)/|[\[\]]")


_LINE_START = re.compile(r"(=+|[-+/]|\d+(?=\.))(?=[\s.]|\Z)")


def escape_markup(text: str, unescaped: str = "", at_line_start: bool = False) -> str:
    r"""Returns text as markup that shows it.

    Args:
        text: any text.
        unescaped: special characters that are left as they are.
        at_line_start: whether the text starts a line, where Typst has headings and items.

    >>> print(escape_markup("5 * 3 # [no] snake_case"))
    5 \* 3 \# [no] snake_case
    >>> print(escape_markup("1. Rain", at_line_start=True), escape_markup("- Snow", at_line_start=True))
    1\. Rain \- Snow
    """
    keep = {*unescaped} | ({"[", "]"} if _is_balanced(text) else set())

    def escape(match: re.Match[str]) -> str:
        character, start = match[0], match.start()
        is_in_word = character in "*_" and text[start - 1 : start].isalnum() and text[start + 1 : start + 2].isalnum()
        is_link = character == "/" and re.search(r"https?:/?$", text[:start]) is not None
        return character if is_in_word or is_link or character in keep else f"\\{character}"

    escaped = _SPECIAL.sub(escape, text)
    if at_line_start and (match := _LINE_START.match(text)):
        start = match.end() if match[0].isdigit() else 0
        return f"{escaped[:start]}\\{escaped[start:]}"
    return escaped


def escape_string(text: str) -> str:
    r"""Returns text as the inside of a string.

    >>> print(escape_string('a "word" \\'))
    a \"word\" \\
    """
    return re.sub(r'["\\]', r"\\\g<0>", text)


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            return False
    return depth == 0
