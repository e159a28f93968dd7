"""The report of an evaluation: ``report.json`` for programs, and the self-contained ``report.html`` for people."""

from __future__ import annotations

import base64
import heapq
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image
from torchmetrics import Metric

from typst_lit.manifest import check_output, write_output
from typst_lit.metrics.documents import Document
from typst_lit.metrics.scoring import Scorer
from typst_lit.typesetting.results import CompileResult, source_line
from typst_lit.version import __version__

MAX_DOCUMENTS_WITH_IMAGES = 100  # the worst ones; with more, the HTML file would be too large to open
MAX_IMAGES_PER_DOCUMENT = 12
MAX_MISSING_LINES = 20  # of a document, in the HTML file
WEBP_QUALITY = 60
IN_STATUS = ("compile_rate", "compile_rate_after_repair", "clean_rate")  # metrics that `ReportEntry.status` shows
DIRECTIONS: dict[bool | None, str] = {True: "higher is better", False: "lower is better", None: ""}
REPORT_FILES = ("report.html", "report.json")
_OUTPUT_HINT = "Name another directory with `eval.report_dir`, or use `eval.overwrite=true` to replace it."
# Names in the HTML file of metrics whose own are not enough; hyphens of acronyms don't break
TITLES = {
    "compile_rate": "compile as written",
    "compile_rate_after_repair": "compile after repair",
    "clean_rate": "clean",
    "chrf": "chrF",
    "bleu": "BLEU",
    "rouge1": "ROUGE\u20111",
    "rouge2": "ROUGE\u20112",
    "rougeL": "ROUGE\u2011L",
}


@dataclass
class ReportEntry:
    """One document in the report, without the parts that would fill the memory.

    Attributes:
        index: position of the document among all documents.
        origin: source location of the record.
        fields: the record.
        body_field: name of the field with the long text.
        scores: of the document, by metric.
        field_scores: how much each short field is shown.
        compiled: whether there is a PDF.
        clean: whether it is clean; None when that is unknown.
        problems: why it is not clean.
        repairs: what was repaired.
        missing_lines: lines of the record's text that it does not show.
        invented_words: words that are neither in the record nor in the style.
        diagnostics: errors and warnings, each with the source line as its ``excerpt``.
        pages: number of pages.
        reference_pages: number of pages of the reference; None without one.
        missing_assets: paths of images that were replaced by a placeholder.
        finish_reason: ``stop`` or ``length``; empty when unknown.
        source: the generated Typst source.
        reference: the source of the reference.
        reference_error: why the reference does not compile, or empty.
        images: data URLs of each page and of the reference's page, empty strings for missing pages.
    """

    index: int
    origin: str
    fields: Mapping[str, Any]
    body_field: str
    scores: dict[str, float]
    field_scores: dict[str, float]
    compiled: bool
    clean: bool | None
    problems: list[str]
    repairs: list[str]
    missing_lines: list[str]
    invented_words: list[str]
    diagnostics: list[dict[str, Any]]
    pages: int
    reference_pages: int | None
    missing_assets: list[str]
    finish_reason: str
    source: str
    reference: str
    reference_error: str
    images: list[tuple[str, str]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """A short name of the document."""
        titles = [value for name, value in self.fields.items() if isinstance(value, str) and name != self.body_field]
        return f"{self.index}. {titles[-1][:40] if titles else self.origin.split('/')[-1]}"

    @property
    def status(self) -> str:
        """What the table says of it in a few words; a document that compiles is clean, repaired, or neither."""
        if not self.compiled:
            return "does not compile"
        if self.repairs:
            return "repaired"
        return {True: "clean", False: "not clean", None: "compiles"}[self.clean]

    @property
    def badness(self) -> tuple[bool, bool, float, float, int]:
        """A sort key, larger for worse documents: not compiling, not clean, losing text, looking different."""
        fidelity, similarity = (self.scores.get(name, 1.0) for name in ("fidelity", "page_similarity"))
        return (not self.compiled, self.clean is False, -fidelity, -similarity, -self.index)

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes without the images."""
        return {key: value for key, value in vars(self).items() if key not in ("images", "index", "body_field")}


class Report:
    """Collects scored documents and writes them to report files, the worst first.

    Args:
        scorer: the scorer that scored them.
        about: what was evaluated: the model, the data.

    >>> import tempfile
    >>> from typst_lit.metrics.documents import Candidate
    >>> from typst_lit.typesetting.typesetter import Typesetter
    >>> candidate = Candidate("records.json[0]", {"title": "Hill Farms", "text": "Two sheep."}, "text", "Two sheep.")
    >>> with Typesetter(workers=1) as typesetter, tempfile.TemporaryDirectory() as directory:
    ...     scorer = Scorer(typesetter)
    ...     report = Report(scorer, {"model": "typst-nano"})
    ...     for index, document in enumerate(scorer.score([candidate])):
    ...         entry = report.add(document, index)
    ...     path = report.write(Path(directory), scorer.compute())
    >>> path.name, entry.label, entry.scores["fidelity"], entry.scores["field_presence"]
    ('report.html', '0. Hill Farms', 1.0, 0.0)
    """

    def __init__(self, scorer: Scorer, about: Mapping[str, Any]) -> None:
        self.scorer = scorer
        self.about = {**about, "typst_lit": __version__}
        self.entries: list[ReportEntry] = []
        self._with_images: list[tuple[Any, ReportEntry]] = []  # a heap, the least bad first

    def add(self, document: Document, index: int) -> ReportEntry:
        """Adds a document; ``index`` is its position among all documents."""
        result, reference, assessment = document.result, document.reference_result, document.assessment
        entry = ReportEntry(
            index=index,
            origin=document.origin,
            fields=dict(document.fields),
            body_field=document.body_field,
            scores={name: round(value, 6) for name, value in self.scorer.document_scores(document).items()},
            field_scores=document.field_scores,
            compiled=result.ok,
            clean=assessment.clean,
            problems=list(assessment.problems),
            repairs=list(document.repairs or ()),
            missing_lines=list(assessment.missing_lines or ()),
            invented_words=list(assessment.invented_words or ()),
            diagnostics=_diagnostics(result),
            pages=result.page_count,
            reference_pages=reference.page_count if reference else None,
            missing_assets=list(result.missing_assets),
            finish_reason=document.finish_reason,
            source=document.source,
            reference=document.reference,
            reference_error=reference.error if reference else "",
            images=_image_pairs(result.pages, reference.pages if reference else ()),
        )
        self.entries.append(entry)
        self._keep_images_of_the_worst([entry])
        return entry

    def merge(self, entries: Iterable[ReportEntry]) -> None:
        """Adds the entries that other processes collected."""
        entries = list(entries)
        self.entries += entries
        self._keep_images_of_the_worst(entries)

    def _keep_images_of_the_worst(self, entries: Iterable[ReportEntry]) -> None:
        for entry in entries:
            heapq.heappush(self._with_images, (entry.badness, entry))
            if len(self._with_images) > MAX_DOCUMENTS_WITH_IMAGES:
                heapq.heappop(self._with_images)[1].images = []

    def write(self, directory: Path, values: Mapping[str, float], overwrite: bool = False) -> Path:
        """Writes both files and returns the path of ``report.html``.

        Args:
            directory: created if it does not exist.
            values: the scores over all documents.
            overwrite: whether to replace files of the user.

        Raises:
            UserError: see `check_report`.
        """
        check_report(directory, overwrite)
        entries = sorted(self.entries, key=lambda entry: entry.badness, reverse=True)
        values = {name: round(value, 6) for name, value in values.items()}
        content = {"about": self.about, "scores": values, "documents": [entry.to_json() for entry in entries]}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_output(directory / "report.json", text.encode(), overwrite=True)
        path = directory / "report.html"
        write_output(path, self._html(entries, values).encode(), overwrite=True)
        return path

    def _html(self, entries: Sequence[ReportEntry], values: Mapping[str, float]) -> str:
        environment = Environment(loader=PackageLoader("typst_lit.reporting", "."), autoescape=True)
        scored = {name for entry in entries for name in entry.scores}
        return environment.get_template("report.html.jinja").render(
            about=self.about,
            values=values,
            columns=[name for name in self.scorer.metrics if name in scored and name not in IN_STATUS],
            entries=entries,
            meanings={name: _meaning(metric) for name, metric in self.scorer.metrics.items()},
            directions={name: DIRECTIONS[metric.higher_is_better] for name, metric in self.scorer.metrics.items()},
            titles=TITLES,
            max_with_images=MAX_DOCUMENTS_WITH_IMAGES,
            max_lines=MAX_MISSING_LINES,
        )


def check_report(directory: Path, overwrite: bool = False) -> None:
    """Checks that a report may be written to a directory. One of an earlier version may be replaced.

    Raises:
        UserError: when ``report.html`` or ``report.json`` belongs to the user, and ``overwrite`` is not set.
    """
    overwrite = overwrite or _is_report(directory / "report.json")
    for name in REPORT_FILES:
        check_output(directory / name, overwrite, hint=_OUTPUT_HINT)


def _is_report(path: Path) -> bool:
    """Returns whether a file is the JSON of a report: that of an earlier version, which no manifest lists."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() == {"about", "scores", "documents"}


def _diagnostics(result: CompileResult) -> list[dict[str, Any]]:
    return [
        {
            **diagnostic._asdict(),
            "excerpt": source_line(result.source, diagnostic.line) if diagnostic.line and not diagnostic.file else "",
        }
        for diagnostic in result.diagnostics
    ]


def _meaning(metric: Metric) -> str:
    """Returns the first sentence of a metric's docstring."""
    paragraph = " ".join((type(metric).__doc__ or "").strip().split("\n\n")[0].split())
    return re.sub(r"`|_(?= )", "", paragraph.split(". ")[0].removesuffix(".")) + "."


def _image_pairs(pages: Sequence[bytes], reference: Sequence[bytes]) -> list[tuple[str, str]]:
    pairs = zip_longest(pages[:MAX_IMAGES_PER_DOCUMENT], reference[:MAX_IMAGES_PER_DOCUMENT])
    return [(_data_url(page), _data_url(other)) for page, other in pairs]


def _data_url(png: bytes | None) -> str:
    """Returns an image as WebP, a fifth of the size of the PNG, in a data URL; an empty string for None."""
    if png is None:
        return ""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
