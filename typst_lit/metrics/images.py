"""How alike two documents look, page by page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

WINDOW = 11  # dots that similarity is taken over: no picture may be smaller
LONGER_SIDE = 400  # pages are compared at about this many dots: lines of text show, letters don't


def page_similarity(pages: Sequence[bytes], reference: Sequence[bytes]) -> float:
    """Returns the structural similarity of two documents' pages, averaged over the longer one's pages.

    Pages are compared one with one, in grey; a page that the other document does not have scores 0.

    Why: layout is what a house style is about, and no text score sees it. Range: 0 (no page alike) to 1 (equal); a
    page that differs entirely scores well above 0, as white paper is like white paper. Blind to: what the words say;
    a paragraph more or less on page 1 shifts every later page and costs more than its share.
    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, computed by torchmetrics.

    Args:
        pages: PNG pictures of the document's pages.
        reference: those of the reference, at the same dots an inch.
    """
    longer = max(len(pages), len(reference))
    scores = [_similarity(page, other) for page, other in zip(pages, reference, strict=False)]
    return sum(scores) / longer if longer else 1.0


def _similarity(page: bytes, other: bytes) -> float:
    if page == other:
        return 1.0
    pictures = [Image.open(io.BytesIO(each)).convert("L") for each in (page, other)]
    # Both on paper that holds either: pages of other sizes are not alike, and are not stretched to look so.
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    first, second = (_tensor(picture, (width, height)) for picture in pictures)
    score = structural_similarity_index_measure(first, second, data_range=1.0)
    assert isinstance(score, Tensor)
    return max(0.0, float(score))


def _tensor(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns a picture on white paper of a size, shrunk to the detail that matters: (1, 1, height, width), 0 to 1."""
    factor = max(1, max(size) // LONGER_SIDE)
    paper = Image.new("L", (max(size[0], WINDOW * factor), max(size[1], WINDOW * factor)), 255)
    paper.paste(picture)
    paper = paper.reduce(factor)
    values = torch.frombuffer(bytearray(paper.tobytes()), dtype=torch.uint8)
    return values.reshape(1, 1, paper.height, paper.width).float() / 255
