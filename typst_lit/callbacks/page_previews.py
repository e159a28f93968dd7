"""Rendered pages, sources and diagnostics in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from typst_lit.metrics.documents import Document

PAPER = (612, 792)  # of a page that is not there
GAP = 16


def show_pages(writer: SummaryWriter, documents: Sequence[Document], step: int) -> None:
    """Writes for each document its first page beside the reference's, its source, and what the compiler said.

    A document keeps its tags over the steps, so that TensorBoard's slider shows how it changes.
    """
    for number, document in enumerate(documents, 1):
        name = f"document_{number}"
        reference = document.reference_result
        pictures = [_page(document.result.pages, document.result.error)]
        if reference is not None:
            pictures.append(_page(reference.pages, reference.error))
        writer.add_image(f"{name}/pages", _side_by_side(pictures), step, dataformats="HWC")
        writer.add_text(f"{name}/source", _as_code(document.source), step)
        said = "\n".join(f"- {each}" for each in document.result.diagnostics) or "no diagnostics"
        writer.add_text(f"{name}/diagnostics", f"**{document.origin}**\n\n{said}", step)


def _as_code(source: str) -> str:
    """Returns a source as an indented block of Markdown, which no backtick in it can end."""
    return "\n".join("    " + line for line in source.split("\n"))


def _page(pages: Sequence[bytes], reason: str) -> Image.Image:
    """Returns the first page, or paper that says why there is none."""
    if pages:
        return Image.open(io.BytesIO(pages[0])).convert("RGB")
    paper = Image.new("RGB", PAPER, "#fbeaea")
    lines = ["does not compile", *(reason[start : start + 70] for start in range(0, min(len(reason), 700), 70))]
    ImageDraw.Draw(paper).multiline_text((24, 24), "\n".join(lines), fill="#b00020", font=ImageFont.load_default(15))
    return paper


def _side_by_side(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Returns pictures in a row as (height, width, 3)."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "#808080")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return np.asarray(row)
