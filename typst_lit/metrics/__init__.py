"""Scores of generated documents: functions of text and images, and the torchmetrics classes around them."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.metrics.documents import Candidate as Candidate
    from typst_lit.metrics.documents import CleanRate as CleanRate
    from typst_lit.metrics.documents import CompileRate as CompileRate
    from typst_lit.metrics.documents import ContentFidelity as ContentFidelity
    from typst_lit.metrics.documents import Document as Document
    from typst_lit.metrics.documents import DocumentMetric as DocumentMetric
    from typst_lit.metrics.documents import EditSimilarity as EditSimilarity
    from typst_lit.metrics.documents import FieldPresence as FieldPresence
    from typst_lit.metrics.documents import Invention as Invention
    from typst_lit.metrics.documents import PageCountError as PageCountError
    from typst_lit.metrics.documents import PageSimilarity as PageSimilarity
    from typst_lit.metrics.documents import RepairedCompileRate as RepairedCompileRate
    from typst_lit.metrics.documents import RougeL as RougeL
    from typst_lit.metrics.documents import RougeN as RougeN
    from typst_lit.metrics.documents import compute_metrics as compute_metrics
    from typst_lit.metrics.documents import document_metrics as document_metrics
    from typst_lit.metrics.documents import update_metric as update_metric
    from typst_lit.metrics.functional import content_fidelity as content_fidelity
    from typst_lit.metrics.functional import edit_similarity as edit_similarity
    from typst_lit.metrics.functional import field_presence as field_presence
    from typst_lit.metrics.functional import invention as invention
    from typst_lit.metrics.functional import rouge_l as rouge_l
    from typst_lit.metrics.house_marks import HouseMarks as HouseMarks
    from typst_lit.metrics.images import page_similarity as page_similarity
    from typst_lit.metrics.scoring import Scorer as Scorer

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Candidate": "typst_lit.metrics.documents",
        "CleanRate": "typst_lit.metrics.documents",
        "CompileRate": "typst_lit.metrics.documents",
        "ContentFidelity": "typst_lit.metrics.documents",
        "Document": "typst_lit.metrics.documents",
        "DocumentMetric": "typst_lit.metrics.documents",
        "EditSimilarity": "typst_lit.metrics.documents",
        "FieldPresence": "typst_lit.metrics.documents",
        "HouseMarks": "typst_lit.metrics.house_marks",
        "Invention": "typst_lit.metrics.documents",
        "PageCountError": "typst_lit.metrics.documents",
        "PageSimilarity": "typst_lit.metrics.documents",
        "RepairedCompileRate": "typst_lit.metrics.documents",
        "RougeL": "typst_lit.metrics.documents",
        "RougeN": "typst_lit.metrics.documents",
        "Scorer": "typst_lit.metrics.scoring",
        "compute_metrics": "typst_lit.metrics.documents",
        "content_fidelity": "typst_lit.metrics.functional",
        "document_metrics": "typst_lit.metrics.documents",
        "edit_similarity": "typst_lit.metrics.functional",
        "field_presence": "typst_lit.metrics.functional",
        "invention": "typst_lit.metrics.functional",
        "page_similarity": "typst_lit.metrics.images",
        "rouge_l": "typst_lit.metrics.functional",
        "update_metric": "typst_lit.metrics.documents",
    },
)
