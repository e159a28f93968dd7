"""Whether a document keeps the text of its record: fidelity, missing lines, invented words; and whether it is clean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rapidfuzz.distance import LCSseq

from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import free_words
from typst_lit.errors import plural
from typst_lit.metrics.functional import content_fidelity, restore_words, without_image_files, words
from typst_lit.typesetting.repairs import Repair
from typst_lit.typesetting.results import CompileResult, shorten

MIN_LINE_SHARE = 0.9  # of a line's words that the document shows in order; with less, the line is missing
MAX_LINE_CHARS = 60  # of the missing line that a problem quotes
CUT_OFF = "cut off at the token limit"  # the problem of a document that the model did not end
MAX_WORDS = 5  # invented words that a problem names
# Numbers in digits, Roman numerals and single letters: headings, lists, figures and pages are numbered with them.
_NUMBER = re.compile(r"\d+|[a-z]|(?:x{0,3}|xl|lx{0,3})(?:ix|iv|v?i{0,3})")


@dataclass(frozen=True)
class Assessment:
    """What a compiled document shows of its record.

    Attributes:
        fidelity: `metrics.functional.content_fidelity`; None when the record has no text.
        missing_lines: lines of the record's text that the document does not show; None when it does not compile.
        invented_words: words that the document shows, and that are neither in the record nor in the style; None when
            it does not compile, and without a contract, which knows the style.
        problems: why the document is not clean, each in a few words; of a clean document none.
        clean: whether the document compiles as it was written, was ended by the model, has no invented words, and at
            least the contract's ``min_fidelity``; None without a contract.
    """

    fidelity: float | None
    missing_lines: tuple[str, ...] | None = None
    invented_words: tuple[str, ...] | None = None
    problems: tuple[str, ...] = ()
    clean: bool | None = None


def assess(
    fields: Mapping[str, Any],
    body_field: str,
    result: CompileResult,
    contract: TextContract | None,
    repairs: Sequence[Repair | str] = (),
    finish_reason: str = "stop",
) -> Assessment:
    """Compares a compiled document with its record.

    Args:
        fields: the record.
        body_field: name of the field with the long text.
        result: of compiling the document; one that failed shows nothing.
        contract: of the adapter that wrote the document; None where it has none.
        repairs: those of the document.
        finish_reason: ``stop``, or ``length`` when the token limit cut the document off.

    Example:
        >>> from typst_lit.typesetting.results import PageText
        >>> result = CompileResult(ok=True, page_texts=(PageText("", "Rain\\nIt rains cats.", "Page 1"),))
        >>> contract = TextContract(3, "0.15.2", min_fidelity=0.97, style_words=("page",))
        >>> assessment = assess({"text": "Rain\\n\\nIt rains.\\n\\nAnd snows."}, "text", result, contract)
        >>> assessment.fidelity, assessment.missing_lines, assessment.invented_words, assessment.clean
        (0.6, ('And snows.',), ('cats',), False)
        >>> assessment.problems
        ('1 line missing: "And snows."', 'invented: cats')
    """
    text = str(fields.get(body_field, ""))
    fidelity = content_fidelity(text, result.body)
    missing = missing_lines(text, result.body) if result.ok else None
    invented = None
    if contract is not None and result.ok:
        record_text = "\n".join(str(value) for value in fields.values())
        free = free_words(result.source, contract)
        invented = invented_words(f"{record_text}\n{free}", result.text, contract)
    min_fidelity = contract.min_fidelity if contract else 0.0
    problems = [] if result.ok else [f"does not compile: {result.error.removeprefix('error: ')}"]
    problems += [CUT_OFF] if finish_reason == "length" else []
    problems += [f"repaired: {repair}" for repair in repairs]
    if result.ok and fidelity is not None and fidelity < min_fidelity:
        problems.append(
            _describe_missing(missing) if missing else f"fidelity {fidelity:.3f} is below {min_fidelity:.3f}"
        )
    problems += [_describe_invented(invented)] if invented else []
    return Assessment(fidelity, missing, invented, tuple(problems), None if contract is None else not problems)


def _describe_missing(lines: Sequence[str]) -> str:
    first = shorten(lines[0])
    first = first if len(first) <= MAX_LINE_CHARS else first[: MAX_LINE_CHARS - 3] + "..."
    return f'{plural(len(lines), "line")} missing: "{first}"'


def _describe_invented(invented: Sequence[str]) -> str:
    named = ", ".join(invented[:MAX_WORDS])
    return f"invented: {named}" + (f", and {len(invented) - MAX_WORDS} more" if len(invented) > MAX_WORDS else "")


def missing_lines(record_text: str, document_text: str) -> tuple[str, ...]:
    """Returns the lines of a record that a document does not show, in order.

    A line is shown when the document has all its words in a row that no longer or earlier line takes, anywhere; or
    most of them where the rest of both texts is aligned. So a line that the record has twice must be shown twice, and a
    heading is not shown by a paragraph that has its words. Names of image files are not expected.

    >>> missing_lines("Rain\\nIt rains.\\nIt rains.\\nRain falls.", "Rain falls.\\nIt\\nrains.")
    ('Rain', 'It rains.')
    """
    lines = [line.strip() for line in record_text.splitlines()]
    line_words = [words(without_image_files(line)) for line in lines]
    shown = words(document_text)
    document = _WordSequence(shown)
    longest_first = sorted(range(len(lines)), key=lambda index: -len("".join(line_words[index])))
    remaining = sorted(index for index in longest_first if line_words[index] and not document.take(line_words[index]))
    missing = _unaligned([line_words[index] for index in remaining], document.remaining())
    return tuple(lines[remaining[position]] for position in missing)


class _WordSequence:
    """The words of a document, from which lines of words are taken."""

    def __init__(self, shown: Sequence[str]) -> None:
        # Without spaces: a word that is broken over lines is found as well
        self._text = "".join(shown)
        offsets = [0, *accumulate(map(len, shown))]
        self._index = {offset: index for index, offset in enumerate(offsets)}  # of the word that starts there
        self._words: list[str | None] = [*shown]

    def take(self, line: Sequence[str]) -> bool:
        """Takes the words of a line, the first that are in a row and not taken; returns whether there are any."""
        phrase = "".join(line)
        start = self._text.find(phrase)
        while start >= 0:
            first, end = self._index.get(start), self._index.get(start + len(phrase))
            if first is not None and end is not None and None not in self._words[first:end]:
                self._words[first:end] = [None] * (end - first)
                return True
            start = self._text.find(phrase, start + 1)
        return False

    def remaining(self) -> list[str]:
        """Returns the words that are not taken."""
        return [word for word in self._words if word is not None]


def _unaligned(lines: Sequence[Sequence[str]], shown: Sequence[str]) -> Iterator[int]:
    """Yields the positions of the lines of which too few words are shown in order."""
    expected = [word for line in lines for word in line]
    matched = [False] * len(expected)
    for block in LCSseq.opcodes(expected, restore_words(shown, set(expected))):
        if block.tag == "equal":
            matched[block.src_start : block.src_end] = [True] * (block.src_end - block.src_start)
    start = 0
    for position, line in enumerate(lines):
        if sum(matched[start : start + len(line)]) < MIN_LINE_SHARE * len(line):
            yield position
        start += len(line)


def invented_words(record_text: str, document_text: str, contract: TextContract) -> tuple[str, ...]:
    """Returns the words that a document shows and that are neither in its record nor in the style, in order.

    Numbers, Roman numerals and single letters are not counted: pages, headings, lists and figures are numbered with
    them.

    >>> contract = TextContract(3, "0.15.2", min_fidelity=0.97, style_words=("page",))
    >>> invented_words("It rains.", "It rains cats. Page iv", contract)
    ('cats',)
    """
    known = {*words(record_text), *contract.style_words}
    shown = restore_words(words(document_text), known)
    return tuple(dict.fromkeys(word for word in shown if word not in known and not _NUMBER.fullmatch(word)))
