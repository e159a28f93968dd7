"""A metric of one's own, as a plugin would bring it: does a document bear the marks of the samples' house style?"""

from __future__ import annotations

from benchmarks.nano.styles import HOUSE_MARKS
from typst_lit.metrics.documents import Document, DocumentMetric


class HouseMarks(DocumentMetric):
    """The share of documents that compile and have every mark of the house style: `styles.HOUSE_MARKS`."""

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return float(document.result.ok and all(mark in document.source for mark in HOUSE_MARKS))
