"""Rendered pages, sources and diagnostics in TensorBoard."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from typst_lit.metrics.documents import Document
from typst_lit.typesetting.results import CompileResult

PLACEHOLDER_SIZE = (612, 792)  # pixels; for the page of a document that does not compile
GAP = 16  # pixels between two pages


def show_pages(writer: SummaryWriter, documents: Sequence[Document], step: int) -> None:
    """Writes each document's first page next to its reference's, its source and its diagnostics.

    A document has the same tags at all steps, so that TensorBoard's slider shows how it changes.

    Args:
        writer: TensorBoard's.
        documents: in the same order at every step.
        step: the optimizer step.
    """
    for number, document in enumerate(documents, start=1):
        name = f"document_{number}"
        results = [document.result]
        if document.reference_result is not None:
            results.append(document.reference_result)
        pages = [_first_page(result) for result in results]
        writer.add_image(f"{name}/pages", _side_by_side(pages), step, dataformats="HWC")
        writer.add_text(f"{name}/source", _as_code(document.source), step)
        writer.add_text(f"{name}/diagnostics", _as_code("\n".join([document.origin, *_remarks(document)])), step)


def _remarks(document: Document) -> list[str]:
    """Returns lines about a document: whether it is clean, what is wrong with it, and the compiler's diagnostics."""
    assessment = document.assessment
    remarks = [] if assessment.clean is None else ["clean" if assessment.clean else "not clean"]
    remarks += [f"- {problem}" for problem in assessment.problems if document.result.ok]
    remarks += [f"- {diagnostic}" for diagnostic in document.result.diagnostics]
    return remarks or ["no diagnostics"]


def _as_code(text: str) -> str:
    """Returns a text as an indented block of Markdown; unlike a fenced one, no backtick in it can end it."""
    return "\n".join("    " + line for line in re.split(r"\r\n|\r|\n", text))


def _first_page(result: CompileResult) -> Image.Image:
    """Returns the first page, or an image that says why there is none."""
    if result.pages:
        return Image.open(io.BytesIO(result.pages[0])).convert("RGB")
    image = Image.new("RGB", PLACEHOLDER_SIZE, "#fbeaea")
    lines = ["does not compile", *textwrap.wrap(result.error, 70)[:10]]
    ImageDraw.Draw(image).multiline_text((24, 24), "\n".join(lines), fill="#b00020", font=ImageFont.load_default(15))
    return image


def _side_by_side(images: Sequence[Image.Image]) -> np.ndarray:
    """Returns images in a row, as an array (height, width, 3) of uint8."""
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "#808080")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return np.asarray(row)
