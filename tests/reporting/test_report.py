from __future__ import annotations

import io
import json
from html.parser import HTMLParser

from PIL import Image

from typst_lit.contract import TextContract
from typst_lit.metrics.documents import Candidate
from typst_lit.metrics.scoring import Scorer
from typst_lit.reporting import report as report_module
from typst_lit.reporting.report import Report
from typst_lit.typesetting.typesetter import Typesetter


def candidates(count: int) -> list[Candidate]:
    fields = {"title": "<script>alert(1)</script>", "text": "one two three four"}
    sources = ["one two three four", "one two", "#bad", "one"]
    return [Candidate(f"record {i}", fields, "text", sources[i % 4], "one two three four") for i in range(count)]


def test_only_the_worst_documents_keep_their_images(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report_module, "MAX_DOCUMENTS_WITH_IMAGES", 3)
    with Typesetter(workers=1) as typesetter:
        scorer = Scorer(typesetter)
        report = Report(scorer, {"model": "tiny"})
        for index, document in enumerate(scorer.score(candidates(6))):
            report.add(document, index)
    path = report.write(tmp_path, scorer.compute())
    entries = json.loads((tmp_path / "report.json").read_text())["documents"]
    assert [entry["origin"] for entry in entries] == [f"record {i}" for i in (2, 3, 1, 5, 0, 4)]
    page = path.read_text()
    assert page.count('class="document"') == 3 and "Pages of the 3 worst" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert sum(bool(entry.images) for entry in report.entries) == 3


class _Structure(HTMLParser):
    """The elements of a page with the names of their attributes, and the values of those that can hold an address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "style", "action")]


def test_hostile_records_and_documents_add_no_elements_to_the_report(tmp_path) -> None:
    hostile = "\"><img src=x onerror=alert(1)><a href='javascript:alert(1)'>&{{ 7*7 }}</pre></script>"
    structures = []
    for text in ("harmless", hostile):
        fields = {"title": text, "text": "one"}
        escaped = text.replace('"', '\\"')
        sources = [f'#panic("{escaped}")', f'#image("{escaped.replace("/", "")}.png", width: 1cm)']
        candidates = [Candidate(f"record {text}", fields, "text", source, "one") for source in sources]
        with Typesetter(workers=1) as typesetter:
            scorer = Scorer(typesetter)
            report = Report(scorer, {"model": text})
            for index, document in enumerate(scorer.score(candidates)):
                report.add(document, index)
        assert [entry.compiled for entry in report.entries] == [False, True]
        page = report.write(tmp_path / str(len(structures)), scorer.compute()).read_text()
        structures.append(_Structure(page))
        assert "&amp;49" not in page
    assert structures[0].elements == structures[1].elements
    assert all(address.startswith(("#d", "data:image/webp;base64,")) for address in structures[1].addresses)


def test_the_report_says_what_is_wrong_with_each_document_and_what_scores_mean(tmp_path) -> None:
    contract = TextContract(3, "0.15.2", min_fidelity=1.0)
    fields = {"title": "T", "text": "It rains.\n\nIt <b>snows</b>.\n\nEnd."}
    text = "It rains.\n\nIt \\<b>snows\\</b>."
    variants = [
        (f"{text}\n\nEnd.", []),
        (f"{text} \\#x\n\nEnd.", ["line 3, column 4: escaped a stray #"]),
        ("It rains cats.\n\nEnd.", []),
        ("#panic()", []),
    ]
    candidates = [
        Candidate(f"record {i}", fields, "text", source, "", "stop", repairs, contract)
        for i, (source, repairs) in enumerate(variants)
    ]
    with Typesetter(workers=1) as typesetter:
        scorer = Scorer(typesetter)
        report = Report(scorer, {})
        for index, document in enumerate(scorer.score(candidates)):
            report.add(document, index)
    page = report.write(tmp_path, scorer.compute()).read_text()
    entries = json.loads((tmp_path / "report.json").read_text())["documents"]
    assert [(entry["origin"][-1], entry["clean"]) for entry in entries] == [
        ("3", False), ("2", False), ("1", False), ("0", True)
    ]  # fmt: skip
    assert [entry.status for entry in report.entries] == ["clean", "repaired", "not clean", "does not compile"]
    assert entries[1]["missing_lines"] == ["It <b>snows</b>."] and entries[1]["invented_words"] == ["cats"]
    assert entries[2]["repairs"] == ["line 3, column 4: escaped a stray #"]
    assert page.count("<code>It &lt;b&gt;snows&lt;/b&gt;.</code>") == 1 and "<b>snows" not in page
    assert "Repaired: line 3, column 4: escaped a stray #</li>" in page and "in the style: cats</li>" in page
    for name, meaning, direction in [
        (
            "compile as written",
            "The share of documents that compile as they were written, without repairs.",
            "↑ higher",
        ),
        ("clean", "they compile as written", "↑ higher"),
        ("invention", "Hallucination rate", "↓ lower"),
    ]:
        card = page.split(f"<strong>{name}</strong>")[1].split("</div>")[0]
        assert meaning in card and f"{direction} is better" in card


def test_entries_of_other_processes_are_merged(tmp_path) -> None:
    with Typesetter(workers=1) as typesetter:
        scorer = Scorer(typesetter)
        reports = [Report(scorer, {}), Report(scorer, {})]
        for index, document in enumerate(scorer.score(candidates(4))):
            reports[index % 2].add(document, index)
    reports[0].merge(reports[1].entries)
    reports[0].write(tmp_path, {})
    entries = json.loads((tmp_path / "report.json").read_text())["documents"]
    assert sorted(entry["origin"] for entry in entries) == [f"record {i}" for i in range(4)]


def test_each_page_has_its_own_image() -> None:
    import base64

    with Typesetter(workers=1) as typesetter:
        pages = typesetter.compile("#set page(width: 100pt, height: 50pt)\nx #pagebreak() y", ppi=72).pages
    (first, no_reference), (second, _) = report_module._image_pairs(pages, ())
    assert no_reference == "" and first != second
    assert Image.open(io.BytesIO(base64.b64decode(first.split(",")[1]))).size == (100, 50)
