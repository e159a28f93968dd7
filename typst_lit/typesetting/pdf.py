"""A PDF's text layer and pictures of its pages, by pdfium."""

from __future__ import annotations

import io
from collections.abc import Callable

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from typst_lit.typesetting.results import PageText

MOST_PIXELS = 25_000_000  # a picture of a page is made smaller than asked for rather than larger than this


def page_sizes(pdf: pdfium.PdfDocument) -> list[tuple[float, float]]:
    """Returns width and height of each page in points."""
    return [pdf.get_page_size(index) for index in range(len(pdf))]


def page_text(pdf: pdfium.PdfDocument, index: int) -> PageText:
    """Returns the text of a page in the order in which it was laid out.

    Typst tags its PDFs: running heads and feet (and backgrounds) are marked as artifacts. So the page is read twice,
    each time with the other kind of text taken out.
    """
    body, _ = _text_of(pdf, index, lambda artifact: not artifact)
    furniture, page = _text_of(pdf, index, lambda artifact: artifact)
    middle = page.get_height() / 2
    return PageText(
        _tidy(furniture.get_text_bounded(bottom=middle)),
        _tidy(body.get_text_bounded()),
        _tidy(furniture.get_text_bounded(top=middle)),
    )


def _text_of(
    pdf: pdfium.PdfDocument, index: int, wanted: Callable[[bool], bool]
) -> tuple[pdfium.PdfTextPage, pdfium.PdfPage]:
    page = pdf[index]
    objects = [raw.FPDFPage_GetObject(page.raw, i) for i in range(raw.FPDFPage_CountObjects(page.raw))]
    for each in objects:
        if raw.FPDFPageObj_GetType(each) == raw.FPDF_PAGEOBJ_TEXT and not wanted(_is_artifact(each)):
            raw.FPDFPage_RemoveObject(page.raw, each)
            raw.FPDFPageObj_Destroy(each)
    return page.get_textpage(), page


_ARTIFACT = "Artifact".encode("utf-16-le")


def _is_artifact(page_object: raw.FPDF_PAGEOBJECT) -> bool:
    name = (raw.FPDF_WCHAR * 32)()
    length = raw.c_ulong()
    for index in range(raw.FPDFPageObj_CountMarks(page_object)):
        mark = raw.FPDFPageObj_GetMark(page_object, index)
        if raw.FPDFPageObjMark_GetName(mark, name, 64, length) and bytes(name)[: len(_ARTIFACT)] == _ARTIFACT:
            return True
    return False


def _tidy(text: str) -> str:
    """Returns the text with plain line ends; a hyphen at a line's end, which pdfium marks, becomes a hyphen again."""
    return text.replace("\r\n", "\n").replace("\x02", "-\n").replace("\ufffe", "-\n").strip()


def page_image(pdf: pdfium.PdfDocument, index: int, ppi: float) -> bytes:
    """Returns a page as PNG, at ``ppi`` dots an inch or fewer where it would have too many dots."""
    page = pdf[index]
    width, height = page.get_size()
    scale = min(ppi / 72, (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
    stream = io.BytesIO()
    page.render(scale=scale).to_pil().save(stream, "PNG")
    return stream.getvalue()
