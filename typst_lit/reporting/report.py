"""The report of an evaluation: ``report.json`` for programs, and ``report.html`` for people, one file by itself."""

from __future__ import annotations

import base64
import heapq
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from typst_lit.metrics.documents import Document
from typst_lit.metrics.scoring import Scorer
from typst_lit.typesetting.results import source_line
from typst_lit.version import __version__

MAX_DOCUMENTS_WITH_IMAGES = (
    100  # documents whose pages are in the HTML file, the worst ones; it would grow too large to open
)
REPORT_FILES = ("report.html", "report.json")
MAX_PAGES_PER_DOCUMENT = 12  # of each of them


@dataclass
class Entry:
    """One document in the report, without what would fill the memory."""

    index: int
    origin: str
    fields: Mapping[str, Any]
    body_field: str
    scores: dict[str, float]
    field_scores: dict[str, float]
    compiled: bool
    diagnostics: list[dict[str, Any]]
    pages: int
    reference_pages: int | None
    missing_assets: list[str]
    finish_reason: str
    source: str
    reference: str
    reference_problem: str
    images: list[tuple[str, str]] = field(default_factory=list)  # data URLs of a page and its reference

    @property
    def label(self) -> str:
        """What to call the document where room is short."""
        titles = [value for name, value in self.fields.items() if isinstance(value, str) and name != self.body_field]
        return f"{self.index}. {titles[-1][:40] if titles else self.origin.split('/')[-1]}"

    @property
    def badness(self) -> tuple[bool, float, float, int]:
        """The worse, the larger: what does not compile, then what loses text, then what looks different."""
        fidelity, similarity = (self.scores.get(name, 1.0) for name in ("fidelity", "page_similarity"))
        return (not self.compiled, -fidelity, -similarity, -self.index)

    def for_json(self) -> dict[str, Any]:
        """Returns everything but the images."""
        return {key: value for key, value in vars(self).items() if key not in ("images", "index", "body_field")}


class Report:
    """Collects scored documents and writes them down, the worst first.

    Args:
        scorer: what scored them.
        about: what was evaluated, in words: the model, the data.
    """

    def __init__(self, scorer: Scorer, about: Mapping[str, Any]) -> None:
        self.scorer = scorer
        self.about = {**about, "typst_lit": __version__}
        self.entries: list[Entry] = []
        self._with_images: list[tuple[Any, Entry]] = []

    def add(self, document: Document, index: int) -> Entry:
        """Adds a document; ``index`` is its place among all."""
        result, reference = document.result, document.reference_result
        entry = Entry(
            index=index,
            origin=document.origin,
            fields=dict(document.fields),
            body_field=document.body_field,
            scores={key: round(value, 6) for key, value in self.scorer.document_scores(document).items()},
            field_scores=document.field_scores,
            compiled=result.ok,
            diagnostics=[
                {
                    **each._asdict(),
                    "excerpt": source_line(result.source, each.line) if each.line and not each.file else "",
                }
                for each in result.diagnostics
            ],
            reference_problem=reference.error if reference else "",
            pages=result.page_count,
            reference_pages=reference.page_count if reference else None,
            missing_assets=list(result.missing_assets),
            finish_reason=document.finish_reason,
            source=document.source,
            reference=document.reference,
        )
        self.entries.append(entry)
        entry.images = _images(result.pages, reference.pages if reference else ())
        self._keep_the_worst_with_images([entry])
        return entry

    def _keep_the_worst_with_images(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            heapq.heappush(self._with_images, (entry.badness, entry))
            if len(self._with_images) > MAX_DOCUMENTS_WITH_IMAGES:
                heapq.heappop(self._with_images)[1].images = []

    def merge(self, others: Iterable[Entry]) -> None:
        """Adds the entries that other processes collected."""
        others = list(others)
        self.entries += others
        self._keep_the_worst_with_images(others)

    def write(self, directory: Path, values: Mapping[str, float]) -> Path:
        """Writes both files, with ``values`` as the scores of the whole, and returns the path of ``report.html``."""
        directory.mkdir(parents=True, exist_ok=True)
        entries = sorted(self.entries, key=lambda entry: entry.badness, reverse=True)
        values = {name: round(value, 6) for name, value in values.items()}
        whole = {"about": self.about, "scores": values, "documents": [entry.for_json() for entry in entries]}
        (directory / "report.json").write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", "utf-8")
        environment = Environment(loader=PackageLoader("typst_lit.reporting", "."), autoescape=True)
        scored = {name for entry in entries for name in entry.scores}
        columns = [name for name in self.scorer.metrics if name in scored and name != "compile_rate"]
        meanings = {name: _meaning(metric) for name, metric in self.scorer.metrics.items()}
        page = environment.get_template("report.html.jinja").render(
            about=self.about,
            values=values,
            columns=columns,
            entries=entries,
            meanings=meanings,
            most=MAX_DOCUMENTS_WITH_IMAGES,
        )
        path = directory / "report.html"
        path.write_text(page, "utf-8")
        return path


def _meaning(metric: Any) -> str:
    better = {True: "higher is better", False: "lower is better"}.get(metric.higher_is_better, "")
    first = (type(metric).__doc__ or "").strip().split("\n")[0].replace("`", "")
    return f"{first} ({better})" if better else first


def _images(pages: Sequence[bytes], reference: Sequence[bytes]) -> list[tuple[str, str]]:
    return [
        (_data_url(page), _data_url(other))
        for page, other in zip_longest(pages[:MAX_PAGES_PER_DOCUMENT], reference[:MAX_PAGES_PER_DOCUMENT])
    ]


def _data_url(png: bytes | None) -> str:
    """Returns a picture as WebP in a data URL, a fifth of the size of its PNG; empty for none."""
    if png is None:
        return ""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
