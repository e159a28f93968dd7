"""The pages of one record before and after a fit, as one picture.

    python -m benchmarks.compare_pages OUTPUT.png runs/demo/before runs/demo/after [--record 0]

Both are run directories of `typst-lit test` on the same records; `make demo` leaves them.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

from typst_lit.typesetting.typesetter import Typesetter

PPI = 60.0
GAP = 16
PAPER, GROUND, INK = "white", "#d8d8d8", "#202020"


def strip(title: str, pages: list[Image.Image]) -> Image.Image:
    """Returns pages beside each other under a title."""
    width = sum(page.width + GAP for page in pages) + GAP
    made = Image.new("RGB", (width, max(page.height for page in pages) + 3 * GAP), GROUND)
    ImageDraw.Draw(made).text((GAP, GAP // 2), title, fill=INK)
    left = GAP
    for page in pages:
        made.paste(page, (left, 2 * GAP))
        left += page.width + GAP
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--record", type=int, default=0, help="which record, in the order of the data")
    parser.add_argument("--pages", type=int, default=2)
    args = parser.parse_args()
    strips = []
    with Typesetter() as typesetter:
        for run in args.runs:
            documents = json.loads((run / "test" / "report.json").read_text("utf-8"))["documents"]
            document = next(each for each in documents if f"record {args.record} " in each["origin"])
            result = typesetter.compile(document["source"], PPI)
            pages = [Image.open(io.BytesIO(page)).convert("RGB") for page in result.pages[: args.pages]]
            strips.append(
                strip(f"{run.name}: {result.error or 'compiles'}", pages or [Image.new("RGB", (500, 700), PAPER)])
            )
    whole = Image.new("RGB", (sum(s.width for s in strips), max(s.height for s in strips)), GROUND)
    left = 0
    for each in strips:
        whole.paste(each, (left, 0))
        left += each.width
    args.output.parent.mkdir(parents=True, exist_ok=True)
    whole.save(args.output, optimize=True)
    print(args.output)


if __name__ == "__main__":
    main()
