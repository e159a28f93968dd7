"""The result of compiling a Typst source: `CompileResult`, its diagnostics and the text of its pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from typst_lit.errors import UserError
from typst_lit.files import atomic_write

MAX_MESSAGE_LENGTH = 2000  # characters


class Diagnostic(NamedTuple):
    """An error or a warning of the compiler, or of the limits it runs under.

    Attributes:
        severity: ``error`` or ``warning``.
        message: one sentence.
        line: line in the source, counted from 1; None when the message is about the whole document.
        column: character in the line, counted from 1, or None.
        hint: how to fix it, or empty.
        file: the file that line and column refer to; empty for the document itself.

    >>> str(Diagnostic("error", "expected expression", line=2, column=11, hint="remove the #"))
    'error: line 2, column 11: expected expression (remove the #)'
    """

    severity: Literal["error", "warning"]
    message: str
    line: int | None = None
    column: int | None = None
    hint: str = ""
    file: str = ""

    def __str__(self) -> str:
        location = f"line {self.line}, column {self.column}: " if self.line else ""
        location = f"{self.file}, {location}" if self.file else location
        return f"{self.severity}: {location}{self.message}" + (f" ({self.hint})" if self.hint else "")

    def shortened(self) -> Diagnostic:
        """Returns the diagnostic as it is displayed: with each text shortened."""
        return self._replace(message=shorten(self.message), hint=shorten(self.hint), file=shorten(self.file))


class PageText(NamedTuple):
    """The text of one page, with header and footer separate from the body.

    >>> PageText(header="My report", body="The first page.", footer="Page 1").body
    'The first page.'
    """

    header: str
    body: str
    footer: str


@dataclass(frozen=True)
class CompileResult:
    """A compiled document, or the errors that prevented it.

    Attributes:
        ok: whether there is a PDF.
        pdf: the PDF; empty when not ok.
        pages: PNG images of the pages; empty unless they were requested.
        diagnostics: errors and warnings.
        page_texts: the text layer, page by page.
        seconds: wall-clock time from the request to the result.
        missing_assets: paths of images that do not exist and were replaced by a placeholder image. They can have any
            character; `shorten` makes them printable.
        source: what was compiled: the given source, with its image paths normalized if that was requested.

    >>> result = CompileResult(ok=True, page_texts=(PageText("My report", "The first page.", "Page 1"),))
    >>> result.page_count, result.body
    (1, 'The first page.')
    >>> CompileResult(ok=False, diagnostics=(Diagnostic("error", "unclosed delimiter", 3, 1),)).error
    'error: line 3, column 1: unclosed delimiter'
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
        """All text of the document, headers and footers included."""
        return "\n".join(part for page in self.page_texts for part in page if part)

    @property
    def body(self) -> str:
        """The text of the document without headers and footers."""
        return "\n".join(page.body for page in self.page_texts)

    @property
    def error(self) -> str:
        """The first error as text; empty without one."""
        return next((str(diagnostic) for diagnostic in self.diagnostics if diagnostic.severity == "error"), "")

    def save_pdf(self, path: Path) -> None:
        """Writes the PDF atomically: what is at the path is replaced.

        Raises:
            UserError: when there is no PDF.
        """
        if not self.ok:
            raise UserError(f"{path}: there is no PDF: {self.error}.")
        atomic_write(path, self.pdf)


_BLOCK = re.compile(r"^(error|warning|help): ", re.MULTILINE)
_LOCATION = re.compile(r"^\s*┌─ (.*):(\d+):(\d+)\s*$", re.MULTILINE)
_IN_MEMORY_DOCUMENT = "__typst_py_bytes__.typ"  # the compiler's name for a source that is not a file
_NEWLINE = re.compile(r"\r\n|[\n\v\f\r\x85\u2028\u2029]")  # all that Typst counts as one
_HINT = re.compile(r"^\s*= hint: (.*)$", re.MULTILINE)


def parse_diagnostics(report: str) -> list[Diagnostic]:
    """Parses the compiler's report, which is only available as text.

    Source lines in the report have line numbers, so none of them is mistaken for the start of a block. The call trace
    (``help: error occurred in this call``) is left out. The texts are those of the compiler, of any length and with any
    character, because they contain the paths of missing files.
    """
    diagnostics = []
    blocks = [*_BLOCK.finditer(report)]
    for block, end in zip(blocks, [*(following.start() for following in blocks[1:]), len(report)], strict=True):
        if block[1] == "help":
            continue
        text = report[block.end() : end]
        location = _LOCATION.search(text)
        message = (text[: location.start()] if location else text.split("\n  = ")[0]).strip()
        hint = "; ".join(_HINT.findall(text))
        # The compiler counts columns from 0.
        line, column = (int(location[2]), int(location[3]) + 1) if location else (None, None)
        file = location[1] if location and not location[1].endswith(_IN_MEMORY_DOCUMENT) else ""
        severity: Literal["error", "warning"] = "error" if block[1] == "error" else "warning"
        diagnostics.append(Diagnostic(severity, message, line, column, hint, file))
    return diagnostics


def line_start(source: str, line: int) -> int:
    """Returns the index at which a line starts, counted from 1 as Typst counts; the length when there is no such line.

    >>> line_start("first\\nsecond", 2)
    6
    """
    starts = [0, *(newline.end() for newline in _NEWLINE.finditer(source))]
    return starts[line - 1] if line <= len(starts) else len(source)


def source_line(source: str, line: int) -> str:
    """Returns the text of a line, counted from 1 as Typst counts.

    >>> source_line("first\\nsecond", 2)
    'second'
    """
    return _NEWLINE.split(source[line_start(source, line) :], maxsplit=1)[0]


def shorten(message: str) -> str:
    """Returns a message cut to `MAX_MESSAGE_LENGTH`, without terminal control characters.

    >>> shorten("red \\x1b[31m text")
    'red  [31m text'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in message[:MAX_MESSAGE_LENGTH])
    return printable if len(message) <= MAX_MESSAGE_LENGTH else printable[:-3] + "..."
