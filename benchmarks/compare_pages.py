"""Draws the pages of one record, from several runs, into one image: for example before and after a fit.

    python -m benchmarks.compare_pages OUTPUT.png runs/demo/before runs/demo/after [--record 0]

Each run directory has a report of `typst-lit test` on the same records, as `make demo` writes them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.harness import OUTPUT_HINT
from typst_lit.manifest import check_output, write_output
from typst_lit.typesetting.typesetter import Typesetter

PPI = 60.0
GAP_PX = 16
PAPER, BACKGROUND, INK = "white", "#d8d8d8", "#202020"


def strip(title: str, pages: Sequence[Image.Image]) -> Image.Image:
    """Returns pages side by side, under a title."""
    width = sum(page.width + GAP_PX for page in pages) + GAP_PX
    image = Image.new("RGB", (width, max(page.height for page in pages) + 3 * GAP_PX), BACKGROUND)
    ImageDraw.Draw(image).text((GAP_PX, GAP_PX // 2), title, fill=INK)
    left = GAP_PX
    for page in pages:
        image.paste(page, (left, 2 * GAP_PX))
        left += page.width + GAP_PX
    return image


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Returns images side by side, without a gap."""
    joined = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), BACKGROUND)
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of `typst-lit test`")
    parser.add_argument("--record", type=int, default=0, help="index of the record in the data")
    parser.add_argument("--pages", type=int, default=2, help="maximum number of pages per run")
    parser.add_argument("--overwrite", action="store_true", help="replace an image that another program wrote")
    args = parser.parse_args()
    check_output(args.output, args.overwrite, hint=OUTPUT_HINT)
    strips = []
    with Typesetter() as typesetter:
        for run in args.runs:
            documents = json.loads((run / "test" / "report.json").read_text("utf-8"))["documents"]
            document = next(document for document in documents if f"record {args.record} " in document["origin"])
            result = typesetter.compile(document["source"], PPI)
            pages = [Image.open(io.BytesIO(page)).convert("RGB") for page in result.pages[: args.pages]]
            title = f"{run.name}: {result.error or 'compiles'}"
            strips.append(strip(title, pages or [Image.new("RGB", (500, 700), PAPER)]))
    write_output(args.output, partial(side_by_side(strips).save, format="PNG", optimize=True), args.overwrite)
    print(args.output)


if __name__ == "__main__":
    main()
