"""What comes of compiling a Typst source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

LONGEST_MESSAGE = 2000


class Diagnostic(NamedTuple):
    """An error or a warning of the compiler, or of the limits it runs under.

    Attributes:
        severity: ``error`` or ``warning``.
        message: one sentence.
        line: line in the source from 1, or None when it belongs to no place.
        column: character in the line from 1, or None.
        hint: what to do about it, or empty.
        file: the file that the place is in, or empty when that is the document itself.
    """

    severity: Literal["error", "warning"]
    message: str
    line: int | None = None
    column: int | None = None
    hint: str = ""
    file: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line else ""
        place = f"{self.file}, {place}" if self.file else place
        return f"{self.severity}: {place}{self.message}" + (f" ({self.hint})" if self.hint else "")


class PageText(NamedTuple):
    """The text of one page: its running head and foot apart from what stands between them."""

    head: str
    body: str
    foot: str


@dataclass(frozen=True)
class CompileResult:
    """A document, or the reasons why there is none.

    Attributes:
        ok: whether there is a PDF.
        pdf: the PDF, empty when not ok.
        pages: PNG pictures of the pages, empty unless they were asked for.
        diagnostics: errors and warnings.
        page_texts: the text layer, page by page.
        seconds: wall-clock time from the request to the answer.
        missing_assets: paths of pictures that were not there and got a stand-in.
        source: what was compiled: the source given, with the paths mended where that was asked for.
    """

    ok: bool
    pdf: bytes = b""
    pages: tuple[bytes, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    page_texts: tuple[PageText, ...] = ()
    seconds: float = 0.0
    missing_assets: tuple[str, ...] = ()
    source: str = ""

    @property
    def page_count(self) -> int:
        """Number of pages."""
        return len(self.page_texts)

    @property
    def text(self) -> str:
        """Everything that can be read in the document, running heads and feet included."""
        return "\n".join(part for page in self.page_texts for part in page if part)

    @property
    def body(self) -> str:
        """What can be read in the document without running heads and feet."""
        return "\n".join(page.body for page in self.page_texts)

    def save_pdf(self, path: Path) -> None:
        """Writes the PDF to a path; without one, removes what an earlier source left there."""
        if self.ok:
            path.write_bytes(self.pdf)
        else:
            path.unlink(missing_ok=True)

    @property
    def reason(self) -> str:
        """The first error as text, or empty."""
        return next((str(each) for each in self.diagnostics if each.severity == "error"), "")


_BLOCK = re.compile(r"^(error|warning|help): ", re.MULTILINE)
_PLACE = re.compile(r"^\s*┌─ (.*):(\d+):(\d+)\s*$", re.MULTILINE)
_DOCUMENT = "__typst_py_bytes__.typ"  # what the compiler calls a source that is no file
_NEWLINE = re.compile(r"\r\n|[\n\v\f\r\x85\u2028\u2029]")  # as Typst has it
_HINT = re.compile(r"^\s*= hint: (.*)$", re.MULTILINE)


def parse_diagnostics(report: str) -> list[Diagnostic]:
    """Reads the compiler's report, which is text only, back into diagnostics.

    Lines of source in the report are numbered, so none of them can be taken for the head of a block. The trace
    (``help: error occurred in this call``) is left out.
    """
    found = []
    starts = [*_BLOCK.finditer(report)]
    for start, end in zip(starts, [*(m.start() for m in starts[1:]), len(report)], strict=True):
        if start[1] == "help":
            continue
        block = report[start.end() : end]
        place = _PLACE.search(block)
        message = (block[: place.start()] if place else block.split("\n  = ")[0]).strip()
        hint = "; ".join(_HINT.findall(block))
        line, column = (int(place[2]), int(place[3]) + 1) if place else (None, None)  # it counts columns from 0
        file = place[1] if place and not place[1].endswith(_DOCUMENT) else ""
        severity: Literal["error", "warning"] = "error" if start[1] == "error" else "warning"
        found.append(Diagnostic(severity, shorten(message), line, column, shorten(hint), file))
    return found


def line_start(source: str, line: int) -> int:
    """Returns where a line of a source begins, counted from 1 as Typst counts them; the end where there is none."""
    starts = [0, *(found.end() for found in _NEWLINE.finditer(source))]
    return starts[line - 1] if line <= len(starts) else len(source)


def line_of(source: str, line: int) -> str:
    """Returns a line of a source."""
    return _NEWLINE.split(source[line_start(source, line) :], maxsplit=1)[0]


def shorten(message: str) -> str:
    """Returns a message without the part that nobody would read, and without what a terminal would obey."""
    plain = "".join(letter if letter.isprintable() else " " for letter in message[:LONGEST_MESSAGE])
    return plain if len(message) <= LONGEST_MESSAGE else plain[:-3] + "..."
