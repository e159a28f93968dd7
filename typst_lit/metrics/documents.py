"""What metrics look at, and the torchmetrics classes around the functions of this room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import BLEUScore, CHRFScore

from typst_lit.metrics import functional
from typst_lit.metrics.images import page_similarity
from typst_lit.typesetting.results import CompileResult


@dataclass(frozen=True)
class Document:
    """A generated document with its record and, if there is one, its reference.

    Attributes:
        origin: source location of the record: file and line or index.
        fields: the record.
        body_field: which of the fields is the long text.
        source: the generated Typst source.
        result: what came of compiling it.
        reference: the source that a person made, or empty.
        reference_result: what came of compiling that, or None without a reference.
        finish_reason: ``stop``, or ``length`` when the token limit cut the source off; empty when not known.
    """

    origin: str
    fields: Mapping[str, Any]
    body_field: str
    source: str
    result: CompileResult
    reference: str = ""
    reference_result: CompileResult | None = None
    finish_reason: str = ""

    @property
    def has_reference_pages(self) -> bool:
        """Whether there is a reference that compiles."""
        return self.reference_result is not None and self.reference_result.ok

    @property
    def reference_pages(self) -> Sequence[Any]:
        """The text of the reference's pages, empty without one."""
        return self.reference_result.page_texts if self.reference_result is not None else ()

    @cached_property
    def field_scores(self) -> dict[str, float]:
        """`functional.field_presence` of the short fields."""
        short = {name: value for name, value in self.fields.items() if name != self.body_field}
        return functional.field_presence(short, self.result.page_texts, self.reference_pages)

    @cached_property
    def similarity(self) -> float | None:
        """`images.page_similarity` to the reference; None without one."""
        if not self.has_reference_pages:
            return None
        assert self.reference_result is not None
        return page_similarity(self.result.pages, self.reference_result.pages)


class Candidate(NamedTuple):
    """What is to be scored: a `Document` before it was compiled."""

    origin: str
    fields: Mapping[str, Any]
    body_field: str
    source: str
    reference: str = ""
    finish_reason: str = ""


class DocumentMetric(Metric, ABC):
    """The mean of a document's score over all documents that have one.

    A subclass writes `score`. Update it with documents; the state (sum and count) adds up over processes.
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, document: Document) -> float | None:
        """Returns one document's score, or None when it has none."""

    def update(self, documents: Sequence[Document]) -> None:
        """Adds documents."""
        for document in documents:
            score = self.score(document)
            if score is not None:
                self.total += score
                self.count += 1

    def compute(self) -> Tensor:
        """Returns the mean, or NaN when no document had a score."""
        return self.total / self.count


class CompileRate(DocumentMetric):
    """The share of documents that compile.

    Why: a document that does not compile is no document. Range: 0 to 1. Blind to: everything else; an empty source
    compiles.
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return float(document.result.ok)


class ContentFidelity(DocumentMetric):
    """How much of the record's long text stands in the document, in order.

    See `functional.content_fidelity`. A document that does not compile shows nothing: 0.
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return functional.content_fidelity(str(document.fields[document.body_field]), document.result.body)


class Invention(DocumentMetric):
    """The share of the document's words that come from neither record nor template.

    See `functional.invention`. A document that shows nothing has no score.
    """

    higher_is_better = False

    def score(self, document: Document) -> float | None:
        given = "\n".join(str(value) for value in document.fields.values())
        return functional.invention(given, document.result.page_texts, document.reference_pages)


class FieldPresence(DocumentMetric):
    """How much the record's short fields are shown where they belong.

    The mean over them of `functional.field_presence`.
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        scores = document.field_scores.values()
        return sum(scores) / len(scores) if scores else None


class PageSimilarity(DocumentMetric):
    """How alike the pages look to the reference's.

    See `images.page_similarity`. A document that does not compile scores 0.
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return document.similarity


class PageCountError(DocumentMetric):
    """By how many pages the document is longer or shorter than the reference, as a share of the reference's pages.

    Why: a lost chapter or an endless one shows here at once. Range: 0 (as many) upwards. Blind to: what stands on the
    pages. A document that does not compile, or has no reference, has no score.
    """

    higher_is_better = False

    def score(self, document: Document) -> float | None:
        if not (document.result.ok and document.has_reference_pages):
            return None
        expected = len(document.reference_pages)
        return abs(document.result.page_count - expected) / expected


class EditSimilarity(DocumentMetric):
    """How much of the source a person would not have to type anew to get the reference.

    See `functional.edit_similarity`.
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return functional.edit_similarity(document.source, document.reference) if document.reference else None


class RougeN(DocumentMetric):
    """How many of the words, or runs of words, two sources have in common (F-measure).

    Args:
        n: length of a run.
    """

    higher_is_better = True

    def __init__(self, n: int) -> None:
        super().__init__()
        self.key = f"rouge{n}"

    def score(self, document: Document) -> float | None:
        if not document.reference:
            return None
        return float(rouge_score(document.source, document.reference, rouge_keys=self.key)[f"{self.key}_fmeasure"])


class RougeL(DocumentMetric):
    """How long the longest common subsequence of two sources' words is: `functional.rouge_l`."""

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return functional.rouge_l(document.source, document.reference) if document.reference else None


def document_metrics() -> dict[str, Metric]:
    """Returns the metrics that every evaluation takes, by the names they are logged under.

    chrF, BLEU and ROUGE compare the sources. They exist to compare with other work; they are blind to whether a
    document compiles, and to what it looks like.
    """
    return {
        "compile_rate": CompileRate(),
        "fidelity": ContentFidelity(),
        "invention": Invention(),
        "field_presence": FieldPresence(),
        "page_similarity": PageSimilarity(),
        "page_count_error": PageCountError(),
        "edit_similarity": EditSimilarity(),
        "chrf": CHRFScore(),
        "bleu": BLEUScore(),
        "rouge1": RougeN(1),
        "rouge2": RougeN(2),
        "rougeL": RougeL(),
    }


def update_metric(metric: Metric, documents: Sequence[Document]) -> None:
    """Updates any metric: one of documents with these, any other one with (generated sources, reference sources)."""
    if isinstance(metric, DocumentMetric):
        metric.update(documents)
        return
    paired = [document for document in documents if document.reference]
    if paired:
        references: list[Any] = [document.reference for document in paired]
        if isinstance(metric, BLEUScore):  # takes a text for a list of references, a letter each
            references = [[reference] for reference in references]
        metric.update([document.source for document in paired], references)


def compute_metrics(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Computes metrics, over all processes, and returns their values by name; what saw nothing is left out.

    A metric that gives several values gives them names of their own.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        if alone and not metric.update_called:
            continue  # where there are several processes, another one may have seen something, and waits for this one
        value = metric.compute()
        several = value if isinstance(value, dict) else {name: value}
        values |= {key: float(each) for key, each in several.items()}
    return {name: value for name, value in values.items() if value == value}
