"""Text layer and page images of a PDF, by pdfium."""

from __future__ import annotations

import io
from typing import Literal

import pypdfium2 as pdfium
import pypdfium2.raw as raw

from typst_lit.typesetting.results import PageText

MAX_IMAGE_PIXELS = 25_000_000  # a larger page image is scaled down to this
_ARTIFACT = "Artifact".encode("utf-16-le")
_MARK_NAME_LENGTH = 32  # characters of 2 bytes


def page_sizes(pdf: pdfium.PdfDocument) -> list[tuple[float, float]]:
    """Returns the width and height of each page in points."""
    return [pdf.get_page_size(index) for index in range(len(pdf))]


def page_text(pdf: pdfium.PdfDocument, index: int) -> PageText:
    """Returns the text of a page in layout order.

    Typst tags its PDFs: headers, footers and backgrounds are marked as artifacts. So the page is read twice, once
    without artifacts and once with nothing else.
    """
    body, _ = _text_without(pdf, index, "artifacts")
    header_and_footer, page = _text_without(pdf, index, "body")
    middle = page.get_height() / 2
    return PageText(
        _normalize(header_and_footer.get_text_bounded(bottom=middle)),
        _normalize(body.get_text_bounded()),
        _normalize(header_and_footer.get_text_bounded(top=middle)),
    )


def _text_without(
    pdf: pdfium.PdfDocument, index: int, removed: Literal["artifacts", "body"]
) -> tuple[pdfium.PdfTextPage, pdfium.PdfPage]:
    page = pdf[index]
    objects = [raw.FPDFPage_GetObject(page.raw, i) for i in range(raw.FPDFPage_CountObjects(page.raw))]
    for page_object in objects:
        is_text = raw.FPDFPageObj_GetType(page_object) == raw.FPDF_PAGEOBJ_TEXT
        if is_text and _is_artifact(page_object) == (removed == "artifacts"):
            raw.FPDFPage_RemoveObject(page.raw, page_object)
            raw.FPDFPageObj_Destroy(page_object)
    return page.get_textpage(), page


def _is_artifact(page_object: raw.FPDF_PAGEOBJECT) -> bool:
    name = (raw.FPDF_WCHAR * _MARK_NAME_LENGTH)()
    length = raw.c_ulong()
    for index in range(raw.FPDFPageObj_CountMarks(page_object)):
        mark = raw.FPDFPageObj_GetMark(page_object, index)
        has_name = raw.FPDFPageObjMark_GetName(mark, name, 2 * _MARK_NAME_LENGTH, length)
        if has_name and bytes(name)[: len(_ARTIFACT)] == _ARTIFACT:
            return True
    return False


def _normalize(text: str) -> str:
    """Returns the text with ``\\n`` as line ending; pdfium's marks of a hyphen at a line end become a hyphen again."""
    return text.replace("\r\n", "\n").replace("\x02", "-\n").replace("\ufffe", "-\n").strip()


def page_image(pdf: pdfium.PdfDocument, index: int, ppi: float) -> bytes:
    """Returns a page as PNG at ``ppi`` pixels per inch, or fewer where it would exceed `MAX_IMAGE_PIXELS`."""
    page = pdf[index]
    width, height = page.get_size()
    scale = min(ppi / 72, (MAX_IMAGE_PIXELS / max(1.0, width * height)) ** 0.5)
    stream = io.BytesIO()
    page.render(scale=scale).to_pil().save(stream, "PNG")
    return stream.getvalue()
