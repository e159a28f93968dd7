"""Stand-in pictures: a grey box with the file's name, in the format that the name promises."""

from __future__ import annotations

import io
from html import escape
from pathlib import PurePosixPath

WIDTH, HEIGHT = 480, 320
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".pdf": "PDF"}


def placeholder_image(path: str) -> bytes | None:
    """Returns a picture for a path, or None when its suffix is not that of a picture."""
    name, suffix = PurePosixPath(path).name, PurePosixPath(path).suffix.lower()
    if suffix == ".svg":
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#d9d9d9" stroke="#8c8c8c" stroke-width="4"/>'
            f'<text x="{WIDTH // 2}" y="{HEIGHT // 2}" font-size="24" fill="#595959" text-anchor="middle">'
            f"{escape(name)}</text></svg>"
        ).encode()
    if suffix not in _FORMATS:
        return None
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (WIDTH, HEIGHT), "#d9d9d9")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline="#8c8c8c", width=4)
    size = max(10, min(28, int(1.6 * WIDTH / max(1, len(name)))))
    draw.text((WIDTH / 2, HEIGHT / 2), name, fill="#595959", anchor="mm", font=ImageFont.load_default(size))
    stream = io.BytesIO()
    picture.save(stream, _FORMATS[suffix])
    return stream.getvalue()
