"""A custom metric, as a plugin would add it: does a document have the marks of the samples' house style?"""

from __future__ import annotations

from typst_lit.metrics.documents import Document, DocumentMetric

HOUSE_MARKS = (
    "align(center + horizon)",
    "2pt + maroon",
    "[Page #counter(page).display()]",
    "show heading: set text(fill: maroon)",
)


class HouseMarks(DocumentMetric):
    """The share of documents that compile and have every mark of the house style (`HOUSE_MARKS`).

    >>> from typst_lit.typesetting.results import CompileResult
    >>> HouseMarks().score(Document("", {}, "text", " ".join(HOUSE_MARKS), CompileResult(ok=True)))
    1.0
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return float(document.result.ok and all(mark in document.source for mark in HOUSE_MARKS))
