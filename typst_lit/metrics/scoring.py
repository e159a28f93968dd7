"""Compiling and scoring documents, for the evaluation during training and for ``typst-lit score``."""

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
SCORING_PPI = 72.0  # pixels per inch of the page images that are compared and shown


class Scorer:
    """Compiles candidates and their references, and updates all metrics.

    Args:
        typesetter: compiles the sources.
        extra_metrics: metrics in addition to `document_metrics`.

    >>> fields = {"title": "Hill Farms", "text": "Two sheep."}
    >>> candidate = Candidate("records.json[0]", fields, "text", "= Hill Farms\\nTwo sheep.")
    >>> with Typesetter(workers=1) as typesetter:
    ...     scorer = Scorer(typesetter)
    ...     documents = list(scorer.score([candidate]))
    >>> scorer.compute()
    {'compile_rate': 1.0, 'fidelity': 1.0, 'invention': 0.0, 'field_presence': 1.0}
    """

    def __init__(self, typesetter: Typesetter, extra_metrics: Mapping[str, Metric] | None = None) -> None:
        self.typesetter = typesetter
        self.metrics: dict[str, Metric] = {**document_metrics(), **(extra_metrics or {})}

    def score(self, candidates: Iterable[Candidate]) -> Iterator[Document]:
        """Compiles candidates, adds them to the metrics, and yields them as documents, in order."""
        candidates, to_compile = tee(candidates)
        sources = (source for c in to_compile for source in ((c.source, c.reference) if c.reference else (c.source,)))
        results = self.typesetter.compile_many(sources, SCORING_PPI)
        for candidate in candidates:
            result = next(results)
            reference_result = next(results) if candidate.reference else None
            if reference_result is not None and not reference_result.ok:
                log.warning("The reference of %s does not compile: %s", candidate.origin, reference_result.error)
            document = Document(**candidate._asdict(), result=result, reference_result=reference_result)
            for metric in self.metrics.values():
                update_metric(metric, [document])
            yield document

    def compute(self) -> dict[str, float]:
        """Returns the scores over all documents of all processes."""
        return compute_metrics(self.metrics)

    def document_scores(self, document: Document) -> dict[str, float]:
        """Returns the scores of one document, by the metrics that score single documents."""
        scores = {
            name: metric.score(document) for name, metric in self.metrics.items() if isinstance(metric, DocumentMetric)
        }
        return {name: score for name, score in scores.items() if score is not None}
