"""Metrics of generated documents: torchmetrics classes around the functions of `functional` and `images`."""

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

from typst_lit.contract import Assessment, TextContract, assess
from typst_lit.metrics import functional
from typst_lit.metrics.images import page_similarity
from typst_lit.typesetting.results import CompileResult, PageText


class Candidate(NamedTuple):
    """A generated source to score: a `Document` that is not compiled yet. The attributes are those of `Document`.

    >>> Candidate("records.json[0]", {"text": "Two sheep."}, "text", "Two sheep.").finish_reason
    ''
    """

    origin: str
    fields: Mapping[str, Any]
    body_field: str
    source: str
    reference: str = ""
    finish_reason: str = ""
    repairs: Sequence[str] | None = None
    contract: TextContract | None = None


@dataclass(frozen=True)
class Document:
    """A compiled document with its record and, if there is one, its reference.

    Attributes:
        origin: source location of the record: its file, and its line or index.
        fields: the record.
        body_field: name of the field with the long text.
        source: the generated Typst source.
        result: of compiling the source.
        reference: the Typst source that a person wrote for the record, or empty.
        reference_result: of compiling the reference; None without one.
        finish_reason: ``stop``, or ``length`` when the token limit cut the source off; empty when unknown.
        repairs: what was repaired in the source; None when unknown.
        contract: the text contract of the adapter that wrote the source; None when unknown.

    >>> result = CompileResult(ok=True, page_texts=(PageText("Hill Farms", "Two sheep.", ""),))
    >>> document = Document("records.json[0]", {"title": "Hill Farms", "text": "Two sheep."}, "text", "...", result)
    >>> document.field_scores
    {'title': 1.0}
    """

    origin: str
    fields: Mapping[str, Any]
    body_field: str
    source: str
    result: CompileResult
    reference: str = ""
    reference_result: CompileResult | None = None
    finish_reason: str = ""
    repairs: Sequence[str] | None = None
    contract: TextContract | None = None

    @cached_property
    def assessment(self) -> Assessment:
        """What the document shows of its record, and whether it is clean."""
        return assess(self.fields, self.body_field, self.result, self.contract, self.repairs or (), self.finish_reason)

    @property
    def has_reference_pages(self) -> bool:
        """Whether there is a reference that compiles."""
        return self.reference_result is not None and self.reference_result.ok

    @property
    def reference_pages(self) -> Sequence[PageText]:
        """The text of the reference's pages; empty without one."""
        return self.reference_result.page_texts if self.reference_result is not None else ()

    @cached_property
    def field_scores(self) -> dict[str, float]:
        """`functional.field_presence` of the short fields."""
        short_fields = {name: value for name, value in self.fields.items() if name != self.body_field}
        return functional.field_presence(short_fields, self.result.page_texts, self.reference_pages)

    @cached_property
    def similarity(self) -> float | None:
        """`images.page_similarity` to the reference; None without one."""
        if self.reference_result is None or not self.has_reference_pages:
            return None
        return page_similarity(self.result.pages, self.reference_result.pages)


class DocumentMetric(Metric, ABC):
    """The mean of a score over all documents that have one.

    A subclass implements `score`. It is updated with documents; its state (sum and count) is summed over processes.
    The setting `model.metrics` adds metrics to the evaluation.

    >>> class HasHeading(DocumentMetric):
    ...     '''The share of documents with a heading.'''
    ...     higher_is_better = True
    ...     def score(self, document: Document) -> float | None:
    ...         return float(document.source.startswith("= "))
    >>> metric = HasHeading()
    >>> metric.update([Document("", {}, "text", source, CompileResult(True)) for source in ("= A", "= B", "C", "D")])
    >>> float(metric.compute())
    0.5
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
        """Returns the score of one document, or None when it has none."""

    def update(self, documents: Sequence[Document]) -> None:
        """Adds documents."""
        for document in documents:
            score = self.score(document)
            if score is not None:
                self.total += score
                self.count += 1

    def compute(self) -> Tensor:
        """Returns the mean score, or NaN when no document has one."""
        return self.total / self.count


class CompileRate(DocumentMetric):
    """The share of documents that compile as they were written, without repairs.

    Why: a source that does not compile is not a document. Range: 0 to 1. Blind to: everything else; an empty source
    compiles.

    >>> CompileRate().score(Document("", {}, "text", "#text(", CompileResult(ok=False)))
    0.0
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return float(document.result.ok and not document.repairs)


class RepairedCompileRate(DocumentMetric):
    """The share of documents that compile, after the repairs that were certain.

    Why: it is the share of records for which there is a PDF. Range: 0 to 1. Blind to: what a repair changed. A document
    of which the repairs are unknown has no score.

    >>> repaired = Document("", {}, "text", "a \\\\#b", CompileResult(ok=True), repairs=("line 1: escaped a stray #",))
    >>> RepairedCompileRate().score(repaired), CompileRate().score(repaired)
    (1.0, 0.0)
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return None if document.repairs is None else float(document.result.ok)


class CleanRate(DocumentMetric):
    """The share of clean documents: they compile as written, are complete, invent no words, and keep the record's text.

    Why: a clean document needs no corrections of its text. Range: 0 to 1. Blind to: what the pages look like. See
    `typst_lit.contract.Assessment`; a document of an adapter without a text contract has no score.

    >>> CleanRate().score(Document("", {"text": "a"}, "text", "a", CompileResult(ok=True))) is None
    True
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        clean = document.assessment.clean
        return None if clean is None else float(clean)


class ContentFidelity(DocumentMetric):
    """How much of the record's long text the document shows, in order.

    See `functional.content_fidelity`. A document that does not compile shows nothing and scores 0.

    >>> result = CompileResult(ok=True, page_texts=(PageText("", "Two sheep.", ""),))
    >>> ContentFidelity().score(Document("", {"text": "Two white sheep."}, "text", "...", result))
    0.6666666666666666
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return document.assessment.fidelity


class Invention(DocumentMetric):
    """Hallucination rate: the share of the document's words that come from neither record nor template.

    See `functional.invention`. A document without words has no score.

    >>> result = CompileResult(ok=True, page_texts=(PageText("", "Two black sheep.", ""),))
    >>> Invention().score(Document("", {"text": "Two sheep."}, "text", "...", result))
    0.3333333333333333
    """

    higher_is_better = False

    def score(self, document: Document) -> float | None:
        record_text = "\n".join(str(value) for value in document.fields.values())
        return functional.invention(record_text, document.result.page_texts, document.reference_pages)


class FieldPresence(DocumentMetric):
    """How much the record's short fields are shown where they belong.

    The mean of `functional.field_presence` over the fields.

    >>> result = CompileResult(ok=True, page_texts=(PageText("Hill Farms", "Two sheep.", ""),))
    >>> fields = {"title": "Hill Farms", "year": "2025", "text": "Two sheep."}
    >>> FieldPresence().score(Document("", fields, "text", "...", result))
    0.5
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        scores = document.field_scores.values()
        return sum(scores) / len(scores) if scores else None


class PageSimilarity(DocumentMetric):
    """How similar the pages look to those of the reference.

    See `images.page_similarity`. A document that does not compile scores 0.

    >>> reference = CompileResult(ok=True, pages=(b"PNG",), page_texts=(PageText("", "Two sheep.", ""),))
    >>> failed = CompileResult(ok=False)
    >>> PageSimilarity().score(Document("", {}, "text", "#text(", failed, "Two sheep.", reference))
    0.0
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return document.similarity


class PageCountError(DocumentMetric):
    """The difference in the number of pages, relative to the reference.

    Why: a missing or endless chapter shows here first. Range: 0 (equal) upwards. Blind to: what is on the pages. A
    document that does not compile or has no reference has no score.

    >>> page = PageText("", "Two sheep.", "")
    >>> one_page, two_pages = (CompileResult(ok=True, page_texts=(page,) * count) for count in (1, 2))
    >>> PageCountError().score(Document("", {}, "text", "...", one_page, "...", two_pages))
    0.5
    """

    higher_is_better = False

    def score(self, document: Document) -> float | None:
        if not (document.result.ok and document.has_reference_pages):
            return None
        expected = len(document.reference_pages)
        return abs(document.result.page_count - expected) / expected


class EditSimilarity(DocumentMetric):
    """How much of the source a person could keep to get the reference.

    See `functional.edit_similarity`. A document without a reference has no score.

    >>> EditSimilarity().score(Document("", {}, "text", "= Title", CompileResult(ok=True), "= Titles"))
    0.875
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return functional.edit_similarity(document.source, document.reference) if document.reference else None


class RougeN(DocumentMetric):
    """ROUGE-N: how many n-grams of words the source and the reference have in common (F-measure).

    Args:
        n: number of words of an n-gram.

    >>> RougeN(1).score(Document("", {}, "text", "two sheep", CompileResult(ok=True), "two white sheep"))
    0.800000011920929
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
    """ROUGE-L: the longest common subsequence of the words of source and reference (F-measure).

    See `functional.rouge_l`.

    >>> RougeL().score(Document("", {}, "text", "two sheep", CompileResult(ok=True), "two white sheep"))
    0.8
    """

    higher_is_better = True

    def score(self, document: Document) -> float | None:
        return functional.rouge_l(document.source, document.reference) if document.reference else None


def document_metrics() -> dict[str, Metric]:
    """Returns the metrics of every evaluation by the names under which they are logged.

    chrF, BLEU and ROUGE compare the sources, for comparison with other work. They see neither whether a document
    compiles nor what it looks like.

    >>> list(document_metrics())[:4]
    ['compile_rate', 'compile_rate_after_repair', 'clean_rate', 'fidelity']
    """
    return {
        "compile_rate": CompileRate(),
        "compile_rate_after_repair": RepairedCompileRate(),
        "clean_rate": CleanRate(),
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
    """Updates a `DocumentMetric` with documents, and any other metric with the sources and their references.

    >>> metric = CHRFScore()
    >>> source = "Two white sheep."
    >>> update_metric(metric, [Document("", {}, "text", source, CompileResult(ok=True), reference=source)])
    >>> round(float(metric.compute()), 3)
    1.0
    """
    if isinstance(metric, DocumentMetric):
        metric.update(documents)
        return
    with_reference = [document for document in documents if document.reference]
    if with_reference:
        references: list[Any] = [document.reference for document in with_reference]
        if isinstance(metric, BLEUScore):  # it would take a string for a list of references of one character each
            references = [[reference] for reference in references]
        metric.update([document.source for document in with_reference], references)


def compute_metrics(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Computes metrics over all processes and returns the values by name, without those that have no value.

    A metric that returns a dictionary adds all its items under their own names.

    >>> metric = CompileRate()
    >>> metric.update([Document("", {}, "text", "= A", CompileResult(ok=True))])
    >>> compute_metrics({"compile_rate": metric, "fidelity": ContentFidelity()})
    {'compile_rate': 1.0}
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        if not is_distributed and not metric.update_called:
            continue  # with several processes, another one may have been updated and waits for this one
        value = metric.compute()
        items = value if isinstance(value, dict) else {name: value}
        values |= {key: float(item) for key, item in items.items()}
    return {name: value for name, value in values.items() if value == value}
