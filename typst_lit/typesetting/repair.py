"""Repairs of documents that almost compile: only such as leave every word where it is, each tried and each told."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from typst_lit.typesetting.results import CompileResult, Diagnostic, line_start
from typst_lit.typesetting.typesetter import Typesetter

MAX_REPAIRS = 12
MOST_SECONDS = 20.0  # behind an error may stand what takes each try to its time limit
# What is not closed, or closes nothing, by what the compiler says of it
MARKS = {
    "unclosed delimiter": "*_$",
    "unclosed raw text": "`",
    "unclosed label": "<",
    "unexpected closing bracket": "]",
}
CLOSERS = {"(": ")", "[": "]", "{": "}", '"': '"', "$": "$"}
PARSING = re.compile(r"unclosed|unexpected|expected|invalid|the character")  # errors found before anything is run


class Repair(NamedTuple):
    """One change to a source.

    Attributes:
        line: line in the source from 1.
        column: character in the line from 1.
        what: what was done there.
    """

    line: int
    column: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.what}"


class Edit(NamedTuple):
    """A repair that may be tried: what stands in place of ``source[start:end]``."""

    start: int
    end: int
    text: str
    what: str


def mend(result: CompileResult, typesetter: Typesetter, cut_off: bool) -> tuple[CompileResult, tuple[Repair, ...]]:
    """Repairs the source of a failed compilation, if that can be done for certain.

    Args:
        result: what compiling gave.
        typesetter: what compiles.
        cut_off: whether the source ends at a token limit. Then what is open at its end is closed, or, where that does
            not compile, the unfinished end is left out.

    Returns:
        The result of the mended source and the repairs; the result as it was and none when it can't be mended.
    """
    current, repairs, deadline = result, list[Repair](), time.monotonic() + MOST_SECONDS
    while not current.ok and len(repairs) < MAX_REPAIRS:
        step = _best(current, typesetter, cut_off, deadline)
        if step is None:
            break
        edit, tried = step
        line = current.source.count("\n", 0, edit.start) + 1
        repairs.append(Repair(line, edit.start - line_start(current.source, line) + 1, edit.what))
        current = tried
    return (current, tuple(repairs)) if current.ok else (result, ())


def _best(
    result: CompileResult, typesetter: Typesetter, cut_off: bool, deadline: float
) -> tuple[Edit, CompileResult] | None:
    """Returns the first edit after which the source compiles, or else the first that helps, or None."""
    helpful = None
    for edit in _edits(result, cut_off):
        if time.monotonic() > deadline:
            return None
        tried = typesetter.compile(result.source[: edit.start] + edit.text + result.source[edit.end :])
        if tried.ok:
            return edit, tried
        if helpful is None and _is_better(tried, result):
            helpful = edit, tried
    return helpful


def _errors(result: CompileResult) -> list[Diagnostic]:
    return [each for each in result.diagnostics if each.severity == "error"]


def _is_better(new: CompileResult, old: CompileResult) -> bool:
    """Returns whether the first error is gone, with no other before it.

    Errors of parsing are told all at once, and hide those of running, which are told one by one.
    """
    was, now = (_first_error(result) for result in (old, new))
    return now is not None and was is not None and now > was


def _first_error(result: CompileResult) -> tuple[bool, int, int] | None:
    """Returns whether a result's first error is one of running, and where it is, to compare."""
    found = [(not PARSING.match(e.message), e.line or 0, e.column or 0) for e in _errors(result) if not e.file]
    # Within a line, places move by what was put in before them: two characters at most.
    return min(((running, line, column // 4) for running, line, column in found), default=None)


def _edits(result: CompileResult, cut_off: bool) -> Iterator[Edit]:
    """Yields what may be tried against the first errors, the least first."""
    source, errors = result.source, [e for e in _errors(result) if e.line and e.column and not e.file]
    places = [line_start(source, e.line or 1) + (e.column or 1) - 1 for e in errors]
    for error, place in zip(errors[:4], places, strict=False):
        yield from _escapes(source, place, error.message)
    if cut_off:
        yield from _closed_at_the_end(source, errors, places)
    for error, place in [*zip(errors, places, strict=True)][::-1]:  # the innermost first
        if error.message == "unclosed delimiter" and source[place : place + 1] in ("(", "[", "{"):
            yield from _closed_early(source, place)
    if cut_off:
        yield from _without_the_end(source)


def _escapes(source: str, place: int, message: str) -> Iterator[Edit]:
    """Yields the mark at an error, or the one that the error comes from, as plain text."""
    mark = source[place : place + 1]
    stray = mark and mark in MARKS.get(message, "") and not source.startswith("```", place)
    if stray or (mark == "@" and message.startswith(("label ", "cannot reference "))):
        yield _escape(source, place)
    elif message.startswith("expected expression") and source[place - 1 : place] == "#":
        yield _escape(source, place - 1)
    elif message.startswith("unknown variable"):
        if source[place - 1 : place] == "#":
            if re.match(r"\w+(?![\w(\[.])", source[place:]):  # not what is called or asked for a part
                yield _escape(source, place - 1)
            return
        line = source.rfind("\n", 0, place) + 1
        dollars = [found.start() for found in re.finditer(r"(?<!\\)\$", source[line:place])]
        end = source.find("$", place)
        word = re.match(r"\w+", source[place:])
        if len(dollars) % 2 and end >= 0 and word:  # within a formula
            dollar = line + dollars[-1]
            inner = source[dollar + 1 : end]
            if re.fullmatch(r"[\w\s,.;:'-]*", inner):  # words, not a formula
                what = "escaped stray $"
                yield Edit(dollar, dollar + len(inner) + 2, f"\\${inner}\\$", what)
            else:
                yield Edit(place, place + len(word[0]), f'"{word[0]}"', f"quoted {word[0]} in the formula")


def _escape(source: str, place: int) -> Edit:
    return Edit(place, place, "\\", f"escaped a stray {source[place]}")


def _closed_at_the_end(source: str, errors: list[Diagnostic], places: list[int]) -> Iterator[Edit]:
    """Yields the end with all that is open closed, the last opened first."""
    told = zip(errors, places, strict=True)
    unclosed = [place for error, place in told if error.message.startswith("unclosed") and place < len(source)]
    if not unclosed:
        return
    closers = ""
    for place in sorted(unclosed, reverse=True):
        fence = re.match(r"`{3,}", source[place:])
        closers += "\n" + fence[0] if fence else CLOSERS.get(source[place], source[place])
    body = source.rstrip()
    what = "closed what was open at the end: "
    yield Edit(len(body), len(source), closers, what + closers.strip())
    # An argument that was only begun, `caption: ` or `columns`, has no value to close after.
    begun = re.search(r"[,(]\s*[\w-]*:?\s*$", body)
    if begun:
        yield Edit(begun.start() + 1, len(source), closers, what + closers.strip())


def _closed_early(source: str, place: int) -> Iterator[Edit]:
    """Yields a bracket closed at the end of its line, or of its paragraph."""
    closer = CLOSERS[source[place]]
    what = f"closed the {source[place]} of "
    line = source.count("\n", 0, place) + 1
    for end in (r"(?=,?[ \t]*(\n|$))", r"(?=,?\s*(\n[ \t]*\n|$))"):
        found = re.compile(end).search(source, place + 1)
        if found and found.start() > place + 1:
            yield Edit(found.start(), found.start(), closer, f"{what}line {line}")


def _without_the_end(source: str) -> Iterator[Edit]:
    """Yields the source up to each of its last blank lines."""
    for found in [*re.finditer(r"\n[ \t]*\n", source)][-1:-6:-1]:
        left_out = source.count("\n", found.end()) + 1
        yield Edit(found.start(), len(source), "\n", f"left out the unfinished end, {left_out} lines")
