"""Placeholder images: a gray box with the file's name, in the format of the file's suffix."""

from __future__ import annotations

import io
from html import escape
from pathlib import PurePosixPath

from typst_lit.typesetting.results import shorten

WIDTH_PX, HEIGHT_PX = 480, 320
MIN_FONT_PX, MAX_FONT_PX = 10, 28
FILL, BORDER, INK = "#d9d9d9", "#8c8c8c", "#595959"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".pdf": "PDF"}


def placeholder_image(path: str) -> bytes | None:
    """Returns a placeholder for the image at a path, or None when the suffix is not that of an image.

    >>> placeholder_image("images/chart.png")[:4]
    b'\\x89PNG'
    >>> placeholder_image("refs.bib") is None
    True
    """
    name, suffix = shorten(PurePosixPath(path).name), PurePosixPath(path).suffix.lower()
    if suffix == ".svg":
        return _svg(name)
    if suffix not in _FORMATS:
        return None
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), FILL)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, WIDTH_PX - 1, HEIGHT_PX - 1), outline=BORDER, width=4)
    size = max(MIN_FONT_PX, min(MAX_FONT_PX, int(1.6 * WIDTH_PX / max(1, len(name)))))
    draw.text((WIDTH_PX / 2, HEIGHT_PX / 2), name, fill=INK, anchor="mm", font=ImageFont.load_default(size))
    stream = io.BytesIO()
    image.save(stream, _FORMATS[suffix])
    return stream.getvalue()


def _svg(name: str) -> bytes:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{HEIGHT_PX}">'
        f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="{FILL}" stroke="{BORDER}" stroke-width="4"/>'
        f'<text x="{WIDTH_PX // 2}" y="{HEIGHT_PX // 2}" font-size="24" fill="{INK}" text-anchor="middle">'
        f"{escape(name)}</text></svg>"
    ).encode()
