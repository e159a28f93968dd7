"""Compiling and scoring documents: the same for the commands that generate them and for those that find them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import tee

from torchmetrics import Metric

from typst_lit.metrics.documents import Document, DocumentMetric, Draft, document_metrics, metric_values, update_metric
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
PPI = 72.0  # of the pictures that are compared and shown


class Scorer:
    """Compiles documents beside their references and feeds all metrics.

    Args:
        typesetter: what compiles.
        further: metrics beside `document_metrics`.
    """

    def __init__(self, typesetter: Typesetter, further: Mapping[str, Metric] | None = None) -> None:
        self.typesetter = typesetter
        self.metrics: dict[str, Metric] = {**document_metrics(), **(further or {})}

    def score(self, drafts: Iterable[Draft]) -> Iterator[Document]:
        """Compiles drafts, adds them to the metrics, and yields them as documents, in order."""
        drafts, ahead = tee(drafts)
        sources = (text for draft in ahead for text in (draft.source, draft.reference)[: 1 + bool(draft.reference)])
        results = self.typesetter.compile_many(sources, PPI)
        for draft in drafts:
            result = next(results)
            reference = next(results) if draft.reference else None
            if reference is not None and not reference.ok:
                log.warning("The reference of %s does not compile: %s", draft.name, reference.reason)
            document = Document(**draft._asdict(), result=result, reference_result=reference)
            for metric in self.metrics.values():
                update_metric(metric, [document])
            yield document

    def values(self) -> dict[str, float]:
        """Returns the scores over all documents, of all processes."""
        return metric_values(self.metrics)

    def scores_of(self, document: Document) -> dict[str, float]:
        """Returns one document's own scores, of those metrics that have such."""
        scores = {
            name: metric.score(document) for name, metric in self.metrics.items() if isinstance(metric, DocumentMetric)
        }
        return {name: score for name, score in scores.items() if score is not None}
