"""Compiling and scoring documents: the same for the commands that generate them and for those that find them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import tee

from torchmetrics import Metric

from typst_lit.metrics.documents import (
    Candidate,
    Document,
    DocumentMetric,
    compute_metrics,
    document_metrics,
    update_metric,
)
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
PPI = 72.0  # of the pictures that are compared and shown


class Scorer:
    """Compiles documents beside their references and feeds all metrics.

    Args:
        typesetter: what compiles.
        extra_metrics: metrics in addition to `document_metrics`.
    """

    def __init__(self, typesetter: Typesetter, extra_metrics: Mapping[str, Metric] | None = None) -> None:
        self.typesetter = typesetter
        self.metrics: dict[str, Metric] = {**document_metrics(), **(extra_metrics or {})}

    def score(self, candidates: Iterable[Candidate]) -> Iterator[Document]:
        """Compiles candidates, adds them to the metrics, and yields them as documents, in order."""
        candidates, ahead = tee(candidates)
        sources = (
            text
            for candidate in ahead
            for text in (candidate.source, candidate.reference)[: 1 + bool(candidate.reference)]
        )
        results = self.typesetter.compile_many(sources, PPI)
        for candidate in candidates:
            result = next(results)
            reference = next(results) if candidate.reference else None
            if reference is not None and not reference.ok:
                log.warning("The reference of %s does not compile: %s", candidate.origin, reference.error)
            document = Document(**candidate._asdict(), result=result, reference_result=reference)
            for metric in self.metrics.values():
                update_metric(metric, [document])
            yield document

    def compute(self) -> dict[str, float]:
        """Returns the scores over all documents, of all processes."""
        return compute_metrics(self.metrics)

    def document_scores(self, document: Document) -> dict[str, float]:
        """Returns one document's own scores, of those metrics that have such."""
        scores = {
            name: metric.score(document) for name, metric in self.metrics.items() if isinstance(metric, DocumentMetric)
        }
        return {name: score for name, score in scores.items() if score is not None}
