"""Whether a document keeps the text of its record: fidelity, missing lines, invented words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rapidfuzz.distance import LCSseq

from typst_lit.contract.text_contract import TextContract
from typst_lit.metrics.functional import content_fidelity, words
from typst_lit.typesetting.results import CompileResult

MIN_LINE_SHARE = 0.9  # of a line's words that the document shows in order; with less, the line is missing


@dataclass(frozen=True)
class Assessment:
    """What a compiled document shows of its record.

    Attributes:
        fidelity: `metrics.functional.content_fidelity`; None when the record has no text.
        missing_lines: lines of the record's text that the document does not show.
        invented_words: words that the document shows, and that are neither in the record nor in the style; None without
            a contract, which knows the style.
        is_faithful: whether nothing is invented and the fidelity is that of the training outputs; None without a
            contract. A document that is faithful and compiles as it was written is clean.
    """

    fidelity: float | None
    missing_lines: tuple[str, ...] = ()
    invented_words: tuple[str, ...] | None = None
    is_faithful: bool | None = None


def assess(
    fields: Mapping[str, Any], body_field: str, result: CompileResult, contract: TextContract | None
) -> Assessment:
    """Compares a compiled document with its record.

    Args:
        fields: the record.
        body_field: name of the field with the long text.
        result: of compiling the document; one that failed shows nothing.
        contract: of the adapter that wrote the document; None where it has none.

    Example:
        >>> from typst_lit.typesetting.results import PageText
        >>> result = CompileResult(ok=True, page_texts=(PageText("", "Rain\\nIt rains cats.", "Page 1"),))
        >>> contract = TextContract(3, "0.15.2", min_fidelity=0.97, style_words=("page",))
        >>> assess({"text": "Rain\\n\\nIt rains.\\n\\nAnd snows."}, "text", result, contract)
        Assessment(fidelity=0.6, missing_lines=('And snows.',), invented_words=('cats',), is_faithful=False)
    """
    text = str(fields[body_field]) if body_field in fields else ""
    fidelity = content_fidelity(text, result.body) if text else None
    missing = missing_lines(text, result.body)
    if contract is None:
        return Assessment(fidelity, missing)
    record_text = "\n".join(str(value) for value in fields.values())
    invented = invented_words(record_text, result.text, contract)
    is_faithful = result.ok and not invented and (fidelity is None or fidelity >= contract.min_fidelity)
    return Assessment(fidelity, missing, invented, is_faithful)


def missing_lines(record_text: str, document_text: str) -> tuple[str, ...]:
    """Returns the lines of a record that a document does not show, in order.

    A line is shown when the document has all its words in a row, or most of them where both texts are aligned.

    >>> missing_lines("First line.\\nSecond one.", "First\\nline and more.")
    ('Second one.',)
    """
    lines = [(line.strip(), words(line)) for line in record_text.splitlines()]
    lines = [(line, line_words) for line, line_words in lines if line_words]
    shown = words(document_text)
    joined = f" {' '.join(shown)} "
    expected = [word for _, line_words in lines for word in line_words]
    matched = [False] * len(expected)
    for block in LCSseq.opcodes(expected, shown):
        if block.tag == "equal":
            matched[block.src_start : block.src_end] = [True] * (block.src_end - block.src_start)
    missing, start = [], 0
    for line, line_words in lines:
        share = sum(matched[start : start + len(line_words)]) / len(line_words)
        start += len(line_words)
        if share < MIN_LINE_SHARE and f" {' '.join(line_words)} " not in joined:
            missing.append(line)
    return tuple(missing)


def invented_words(record_text: str, document_text: str, contract: TextContract) -> tuple[str, ...]:
    """Returns the words that a document shows and that are neither in its record nor in the style, in order.

    Numbers are not counted: pages, headings and figures have them. Parts of a word that was broken over two lines are
    not counted either.

    >>> contract = TextContract(3, "0.15.2", min_fidelity=0.97, style_words=("page",))
    >>> invented_words("It rains.", "It rains cats. Page 1", contract)
    ('cats',)
    """
    known = {*words(record_text), *contract.style_words}
    shown = words(document_text)
    broken = {part for first, second in pairwise(shown) if first + second in known for part in (first, second)}
    unknown = [word for word in shown if word not in known and word not in broken and not word.isdigit()]
    return tuple(dict.fromkeys(unknown))
