"""Similarity of the rendered pages of two documents."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

WINDOW_PX = 11  # of the SSIM; images must be at least as large
COMPARED_SIDE_PX = 400  # pages are scaled down to about this: lines of text are visible, letters are not
WHITE = 255


def page_similarity(pages: Sequence[bytes], reference: Sequence[bytes]) -> float:
    """Returns the structural similarity (SSIM) of two documents' pages, averaged over the pages of the longer one.

    Pages with the same index are compared, in grayscale; a page that the other document does not have scores 0.

    Why: layout is the point of a house style, and no text score sees it. Range: 0 (no page similar) to 1 (equal); even
    a completely different page scores well above 0, because white paper is similar to white paper. Blind to: what the
    words say. An additional paragraph on page 1 shifts all later pages and costs more than its share.
    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, computed by torchmetrics.

    Args:
        pages: PNG images of the document's pages.
        reference: those of the reference, at the same resolution.

    >>> def png(color: int) -> bytes:
    ...     stream = io.BytesIO()
    ...     Image.new("L", (30, 40), color).save(stream, "PNG")
    ...     return stream.getvalue()
    >>> page_similarity([png(255)], [png(255), png(255)])
    0.5
    >>> page_similarity([png(255)], [png(0)]) < 0.01
    True
    """
    num_pages = max(len(pages), len(reference))
    scores = [_similarity(page, other) for page, other in zip(pages, reference, strict=False)]
    return sum(scores) / num_pages if num_pages else 1.0


def _similarity(page: bytes, other: bytes) -> float:
    if page == other:
        return 1.0
    images = [Image.open(io.BytesIO(png)).convert("L") for png in (page, other)]
    # Pages of different sizes are put on paper that holds both, because stretching would make them more similar.
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    first, second = (_to_tensor(image, (width, height)) for image in images)
    score = structural_similarity_index_measure(first, second, data_range=1.0)
    assert isinstance(score, Tensor)
    return max(0.0, float(score))


def _to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns an image on white paper of a size, scaled down for comparison: (1, 1, height, width), 0 to 1."""
    factor = max(1, max(size) // COMPARED_SIDE_PX)
    paper = Image.new("L", (max(size[0], WINDOW_PX * factor), max(size[1], WINDOW_PX * factor)), WHITE)
    paper.paste(image)
    paper = paper.reduce(factor)
    values = torch.frombuffer(bytearray(paper.tobytes()), dtype=torch.uint8)
    return values.reshape(1, 1, paper.height, paper.width).float() / WHITE
