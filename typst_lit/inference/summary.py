"""What is logged about generated documents: a line per document, and how many are clean."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typst_lit.contract import CUT_OFF
from typst_lit.errors import plural

if TYPE_CHECKING:
    # not at run time: `typst-lit generate` checks its input before it imports torch
    from typst_lit.inference.attempts import GeneratedDocument

log = logging.getLogger(__name__)
RECOMMENDED_ATTEMPTS = 3  # for those whose documents are not clean


@dataclass
class DocumentCounts:
    """How many documents there are, and how good they are.

    Attributes:
        documents: number of documents.
        not_compiled: number of those that do not compile.
        clean: number of clean ones.
        not_clean: number of those that are not. Documents of an adapter without a text contract are neither.

    Example:
        >>> from typst_lit.inference.attempts import GeneratedDocument
        >>> counts = DocumentCounts()
        >>> counts.add(GeneratedDocument({"title": "A"}, "= A", "stop", tokens=3))
        >>> counts
        DocumentCounts(documents=1, not_compiled=0, clean=0, not_clean=0)
    """

    documents: int = 0
    not_compiled: int = 0
    clean: int = 0
    not_clean: int = 0

    def add(self, document: GeneratedDocument) -> None:
        """Counts a document."""
        self.documents += 1
        self.not_compiled += document.compiled is False
        self.clean += document.clean is True
        self.not_clean += document.clean is False

    def log_summary(self, max_attempts: int = 1, temperature: float | None = None, setting: str = "attempts") -> None:
        """Logs how many documents are clean and how many do not compile, and what can be done about it.

        Args:
            max_attempts: how many attempts there were at most.
            temperature: at which they were sampled.
            setting: name of the setting for the attempts.
        """
        if num_assessed := self.clean + self.not_clean:
            level = logging.WARNING if self.not_clean else logging.INFO
            log.log(level, "%d of %s are clean.", self.clean, plural(num_assessed, "document"))
        if self.not_compiled:
            log.warning("%d of %s do not compile.", self.not_compiled, plural(self.documents, "document"))
        if self.not_compiled or self.not_clean:
            hints = [f"`{setting}={RECOMMENDED_ATTEMPTS}`"] if max_attempts < RECOMMENDED_ATTEMPTS else []
            hints += ["`generation.temperature=0`"] if temperature else []
            log.warning("What may help: %s.", ", ".join([*hints, "more training"]))


def log_document(document: GeneratedDocument) -> None:
    """Logs a line about a document, as a warning if it is not clean, does not compile, or was cut off."""
    log.log(logging.INFO if document.is_acceptable else logging.WARNING, "%s", describe(document))


def describe(document: GeneratedDocument) -> str:
    """Returns a line about a document.

    >>> from typst_lit.inference.attempts import GeneratedDocument
    >>> describe(GeneratedDocument({"title": "A"}, "= A", "length", tokens=3, seconds=0.5, index=2))
    'record 2: 3 tokens, 0.5 s, cut off at the token limit: raise `generation.max_tokens`'
    """
    parts = [plural(document.tokens, "token"), f"{document.seconds:.1f} s"]
    if document.attempts > 1:
        parts.append(plural(document.attempts, "attempt"))
    if document.rollbacks:
        parts.append(plural(document.rollbacks, "rollback"))
    if document.contract_abandoned:
        parts.append("text contract abandoned")
    if document.result is not None and document.result.ok:
        parts.append(plural(document.result.page_count, "page"))
    if document.fidelity is not None:
        parts.append(f"fidelity {document.fidelity:.3f}")
    problems = [
        f"{problem}: raise `generation.max_tokens`" if problem == CUT_OFF else problem for problem in document.problems
    ]
    if document.clean is not None:
        parts.append(f"not clean: {'; '.join(problems)}" if problems else "clean")
    else:
        parts += problems
    return f"record {document.index}: {', '.join(parts)}"
