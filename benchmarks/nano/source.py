"""Made-up pairs as a data source: ``--data.source benchmarks.nano.source.SyntheticReports``, or as a file:

python -m benchmarks.nano.source pairs.jsonl --count 200 --seed 9 --unseen
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.nano.chapters import COPY_OFFICE, Chapter, Paragraph, copying_task, make_chapter, random_writer
from benchmarks.nano.guests import guest, guest_style
from benchmarks.nano.styles import DEPARTMENTS, escape, style_of
from typst_lit.data.sources import RecordSource, Row

VERSION = 2  # raise it when a seed gives other pairs than before


class SyntheticReports(RecordSource):
    """Chapters of made-up reports in the styles of many departments. Pair number n depends on seed and n alone.

    Args:
        count: how many pairs.
        seed: what they are made from.
        copying: share of pairs whose document is only their text, on which copying is learned before all else.
        unseen: write with words that no other pair has: for measuring.
        hard: share of pairs that are hard to copy, of words that are altered and that recur.
        brief: share of those that have many blocks of few words, where it is hard to know what comes next.
        guests: share of pairs whose department comes once, in a style that no other has.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        copying: float = 0.0,
        unseen: bool = False,
        hard: float = 0.0,
        brief: float = 0.0,
        guests: float = 0.0,
    ) -> None:
        self.count = count
        self.seed = seed
        self.copying = copying
        self.unseen = unseen
        self.hard = hard
        self.brief = brief
        self.guests = guests

    def rows(self) -> Iterator[Row]:
        for index in range(self.count):
            yield Row(f"made-up record {index} of seed {self.seed}", self.pair(index))

    def pair(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        writer = random_writer(self.seed, index, self.unseen)
        writer.hard = self.hard > 0 and writer.rng.random() < self.hard
        writer.brief = writer.hard and self.brief > 0 and writer.rng.random() < self.brief
        if writer.rng.random() < self.copying:
            chapter = copying_task(writer)
        else:
            is_guest = self.guests > 0 and writer.rng.random() < self.guests
            chapter = make_chapter(writer, guest(writer) if is_guest else writer.rng.choice(DEPARTMENTS))
        return {"input": chapter.record, "output": render(chapter)}

    def fingerprint(self) -> str:
        return f"synthetic {VERSION} {vars(self)}"


def render(chapter: Chapter) -> str:
    """Returns a chapter in its department's style; a copying task as it is."""
    if chapter.department == COPY_OFFICE:
        return "\n\n".join(escape(block.text) for block in chapter.blocks if isinstance(block, Paragraph)) + "\n"
    style = style_of if chapter.department in DEPARTMENTS else guest_style
    return style(chapter.department).render(chapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines of pairs")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unseen", action="store_true", help="with words that are kept out of training")
    args = parser.parse_args()
    source = SyntheticReports(args.count, args.seed, unseen=args.unseen)
    with args.output.open("w", encoding="utf-8") as stream:
        for row in source.rows():
            stream.write(json.dumps(row.value, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
