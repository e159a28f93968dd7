"""Repairs of documents that almost compile: only edits that keep every word, each tested by compiling, all reported."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from typst_lit.errors import plural
from typst_lit.typesetting.results import CompileResult, line_start
from typst_lit.typesetting.syntax import START, advance, closers
from typst_lit.typesetting.typesetter import Typesetter

MAX_REPAIRS = 12  # per document
MAX_SECONDS = 20.0  # per document, because each attempt may run into the typesetter's timeout
MAX_ERRORS_TRIED = 4  # at which marks are escaped
# Markup that is left open or closes nothing, by the compiler's message
MARKS = {
    "unclosed delimiter": "*_$",
    "unclosed raw text": "`",
    "unclosed label": "<",
    "unexpected closing bracket": "]",
}
CLOSING_BRACKETS = {"(": ")", "[": "]", "{": "}"}
SYNTAX_ERROR = re.compile(r"unclosed|unexpected|expected|invalid|the character")
WORDS_ONLY = re.compile(r"[\w\s,.;:'-]*")


class Repair(NamedTuple):
    """One change to a source.

    Attributes:
        line: line in the source, counted from 1.
        column: character in the line, counted from 1.
        description: what was changed there.

    >>> str(Repair(2, 9, "escaped a stray #"))
    'line 2, column 9: escaped a stray #'
    """

    line: int
    column: int
    description: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.description}"


class Edit(NamedTuple):
    """A repair to try: ``source[start:end]`` is replaced by ``text``."""

    start: int
    end: int
    text: str
    description: str

    def apply(self, source: str) -> str:
        """Returns the edited source."""
        return source[: self.start] + self.text + source[self.end :]


def repair(result: CompileResult, typesetter: Typesetter, cut_off: bool) -> tuple[CompileResult, tuple[Repair, ...]]:
    """Repairs the source of a failed compilation, where that is possible without guessing.

    Args:
        result: of the failed compilation.
        typesetter: compiles the edited sources.
        cut_off: whether the source ends at a token limit. Then what is open at its end is closed, or, where that does
            not compile, the unfinished end is removed.

    Returns:
        The result of the repaired source and the repairs; the given result and no repairs when it can't be repaired.

    >>> with Typesetter(workers=1) as typesetter:
    ...     result, repairs = repair(typesetter.compile("Text at #foo and more."), typesetter, cut_off=False)
    >>> result.ok, result.text, str(repairs[0])
    (True, 'Text at #foo and more.', 'line 1, column 9: escaped a stray #')
    """
    current, repairs, deadline = result, list[Repair](), time.monotonic() + MAX_SECONDS
    while not current.ok and len(repairs) < MAX_REPAIRS:
        step = _best_edit(current, typesetter, cut_off, deadline)
        if step is None:
            break
        edit, edited = step
        line = current.source.count("\n", 0, edit.start) + 1
        repairs.append(Repair(line, edit.start - line_start(current.source, line) + 1, edit.description))
        current = edited
    return (current, tuple(repairs)) if current.ok else (result, ())


def _best_edit(
    result: CompileResult, typesetter: Typesetter, cut_off: bool, deadline: float
) -> tuple[Edit, CompileResult] | None:
    """Returns the first edit after which the source compiles, or else the first that makes progress, or None."""
    progress = None
    for edit in _candidate_edits(result, cut_off):
        if time.monotonic() > deadline:
            return None
        edited = typesetter.compile(edit.apply(result.source))
        if edited.ok:
            return edit, edited
        if progress is None and _is_progress(edited, result):
            progress = edit, edited
    return progress


def _is_progress(new: CompileResult, old: CompileResult) -> bool:
    """Returns whether the first error is gone and no other one comes before it.

    Syntax errors are reported together and hide runtime errors, which are reported one by one.
    """
    before, after = _first_error(old), _first_error(new)
    return after is not None and before is not None and after > before


def _first_error(result: CompileResult) -> tuple[bool, int, int] | None:
    """Returns the first error of the document as a sortable key: whether it is a runtime error, and its position."""
    errors = [
        (not SYNTAX_ERROR.match(error.message), error.line or 0, error.column or 0)
        for error in result.diagnostics
        if error.severity == "error" and not error.file
    ]
    # The edits before an error move it by two columns at most, so columns are compared in steps of four.
    return min(((is_runtime, line, column // 4) for is_runtime, line, column in errors), default=None)


def _candidate_edits(result: CompileResult, cut_off: bool) -> Iterator[Edit]:
    """Yields the edits to try against the first errors, the smallest change first."""
    source = result.source
    errors = [e for e in result.diagnostics if e.severity == "error" and e.line and e.column and not e.file]
    positions = [line_start(source, error.line or 1) + (error.column or 1) - 1 for error in errors]
    located = list(zip(errors, positions, strict=True))
    for error, position in located[:MAX_ERRORS_TRIED]:
        yield from _escapes(source, position, error.message)
    if cut_off:
        yield from _close_at_end(source)
    for error, position in reversed(located):  # the innermost first
        if error.message == "unclosed delimiter" and source[position : position + 1] in CLOSING_BRACKETS:
            yield from _close_early(source, position)
    if cut_off:
        yield from _remove_end(source)


def _escapes(source: str, position: int, message: str) -> Iterator[Edit]:
    """Yields edits that turn the markup at an error, or the markup that causes it, into plain text."""
    mark = source[position : position + 1]
    is_stray = mark and mark in MARKS.get(message, "") and not source.startswith("```", position)
    is_reference = mark == "@" and message.startswith(("label ", "cannot reference "))
    follows_hash = source[position - 1 : position] == "#"
    if is_stray or is_reference:
        yield _escape(source, position)
    elif message.startswith("expected expression") and follows_hash:
        yield _escape(source, position - 1)
    elif message.startswith("unknown variable") and follows_hash:
        if re.match(r"\w+(?![\w(\[.])", source[position:]):  # a bare word: neither a call nor a field access
            yield _escape(source, position - 1)
    elif message.startswith("unknown variable"):
        yield from _math_as_text(source, position)


def _escape(source: str, position: int) -> Edit:
    return Edit(position, position, "\\", f"escaped a stray {source[position]}")


def _math_as_text(source: str, position: int) -> Iterator[Edit]:
    """Yields an edit for an unknown variable in a formula: quotes the word, or escapes dollars that enclose prose."""
    line = source.rfind("\n", 0, position) + 1
    dollars = [dollar.start() for dollar in re.finditer(r"(?<!\\)\$", source[line:position])]
    end = source.find("$", position)
    word = re.match(r"\w+", source[position:])
    if len(dollars) % 2 == 0 or end < 0 or not word:
        return  # not in a formula
    dollar = line + dollars[-1]
    formula = source[dollar + 1 : end]
    if WORDS_ONLY.fullmatch(formula):
        yield Edit(dollar, end + 1, f"\\${formula}\\$", "escaped stray $")
    else:
        yield Edit(position, position + len(word[0]), f'"{word[0]}"', f"quoted {word[0]} in the formula")


def _close_at_end(source: str) -> Iterator[Edit]:
    """Yields edits that close everything that is open at the end of the source."""
    body = source.rstrip()
    # An argument without a value, such as `caption: ` or `columns`, is removed.
    incomplete = re.search(r"[,(]\s*[\w-]*:?\s*$", body)
    for end in (len(body), *([incomplete.start() + 1] if incomplete else [])):
        state = advance(START, body[:end])
        if state is not None and (closing := closers(state)):
            yield Edit(end, len(source), closing, f"closed what was open at the end: {closing.strip()}")


def _close_early(source: str, position: int) -> Iterator[Edit]:
    """Yields edits that close a bracket at the end of its line, or of its paragraph."""
    bracket = source[position]
    line = source.count("\n", 0, position) + 1
    for pattern in (r"(?=,?[ \t]*(\n|$))", r"(?=,?\s*(\n[ \t]*\n|$))"):
        end = re.compile(pattern).search(source, position + 1)
        if end and end.start() > position + 1:
            yield Edit(end.start(), end.start(), CLOSING_BRACKETS[bracket], f"closed the {bracket} of line {line}")


def _remove_end(source: str) -> Iterator[Edit]:
    """Yields edits that cut the source at one of its last five blank lines."""
    for blank in [*re.finditer(r"\n[ \t]*\n", source)][-1:-6:-1]:
        num_lines = source.count("\n", blank.end()) + 1
        description = f"removed the unfinished end ({plural(num_lines, 'line')})"
        yield Edit(blank.start(), len(source), "\n", description)
