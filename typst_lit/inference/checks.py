"""Checks of a document while it is decoded: what was written so far is compiled, with what is open closed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from typst_lit.contract.assessment import invented_words
from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import free_words
from typst_lit.inference.tracker import PrefixCheck
from typst_lit.typesetting.results import CompileResult, Diagnostic, line_start
from typst_lit.typesetting.typesetter import Typesetter

# Headers, footers and show rules fail only when something is laid out after them. A number does not count as invented.
LAID_OUT = "\n\n0"
_LINE_OF_TABLE = re.compile(r"(?:horizontal|vertical) line at ")  # in a row that may still come
_MISSING_LABEL = re.compile(r"label `.*` does not exist in the document")
# An error of the parser, an unknown name, or what can't be called: it stays whatever follows. Others may vanish with an
# argument, a unit, an operand or a colon that follows, as long as their construct is open.
_CERTAIN = re.compile(
    r"expected (?:comma|expression|identifier|pattern|argument list|semicolon or line break)$"
    r"|expected (?:pattern|function), found |invalid number suffix: "
    r"|unclosed |the character |unexpected (?!argument)|unknown variable: |function `.*` does not contain field "
)
_NAME = re.compile(r"[\w-]+\s*")
_CALL = re.compile(r"[\w)\]]\([^()]*$")  # up to one of its arguments
_PARAMETERS = re.compile(r"[\w\s,.:-]*\)?\s*")


class PrefixChecker:
    """Compiles prefixes of one document.

    Args:
        typesetter: what compiles.
        executor: the threads that wait for it.
        fields: the document's record.
        contract: its text contract; None without one.
    """

    def __init__(
        self, typesetter: Typesetter, executor: Executor, fields: Mapping[str, Any], contract: TextContract | None
    ) -> None:
        self._typesetter = typesetter
        self._executor = executor
        self._record_text = "\n".join(map(str, fields.values()))
        self._contract = contract

    def __call__(self, prefix: str, closers: str, is_final: bool) -> Future[PrefixCheck]:
        """Starts the check of a prefix; a final one is a complete source."""
        return self._executor.submit(self._check, prefix, closers, is_final)

    def _check(self, prefix: str, closers: str, is_final: bool) -> PrefixCheck:
        source = prefix + closers + ("" if is_final else LAID_OUT)
        result = self._typesetter.compile(source)
        if result.ok:
            if invented := self._invented(result, source):
                return PrefixCheck(True, _last_position(invented[0], prefix), is_invented=True)
            return PrefixCheck(True)
        error = next(diagnostic for diagnostic in result.diagnostics if diagnostic.severity == "error")
        if not is_final and _MISSING_LABEL.match(error.message):
            return PrefixCheck(True)  # the label may still come
        position = _position(error, result.source)
        is_open = _LINE_OF_TABLE.search(error.message) or _may_be_parameters(error.message, position, prefix)
        if position is None or position >= len(prefix) or is_open:
            return PrefixCheck(False, None, is_incomplete=not is_final)
        is_content = prefix[position] == "["  # whatever is in it
        is_certain = is_content or (_CERTAIN.match(error.message) and position < len(prefix.rstrip()) - 1)
        return PrefixCheck(False, position, is_incomplete=not (is_final or is_certain))

    def _invented(self, result: CompileResult, source: str) -> Sequence[str]:
        if self._contract is None:
            return ()
        free = free_words(source, self._contract)
        return invented_words(f"{self._record_text}\n{free}", result.text, self._contract)


def _last_position(word: str, source: str) -> int | None:
    """Returns where a word is in a source for the last time, whatever its case; None if it is not found."""
    lower = source.lower()
    position = lower.rfind(word)
    return position if position >= 0 and len(lower) == len(source) else None


def _may_be_parameters(message: str, position: int | None, prefix: str) -> bool:
    """Returns whether an unknown variable may be a parameter of an unnamed function, with `=>` still to come."""
    if position is None or not message.startswith("unknown variable"):
        return False
    if _NAME.fullmatch(prefix, position):
        return True
    is_in_list = prefix[:position].rstrip().endswith(("(", ",")) and not _CALL.search(prefix, 0, position)
    return is_in_list and _PARAMETERS.fullmatch(prefix, position) is not None


def _position(error: Diagnostic, source: str) -> int | None:
    if error.line is None or error.column is None or error.file:
        return None
    return line_start(source, error.line) + error.column - 1
