"""Synthetic pairs as a data source (``--data.source benchmarks.nano.source.SyntheticReports``) or as a file:

python -m benchmarks.nano.source pairs.jsonl --count 200 --seed 9 --unseen
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.nano.chapters import COPY_OFFICE, Chapter, Paragraph, copy_task, make_chapter, random_writer
from benchmarks.nano.random_styles import random_department, random_style
from benchmarks.nano.styles import DEPARTMENTS, department_style, escape
from typst_lit.data.sources import RecordSource, Row
from typst_lit.manifest import write_output

VERSION = 2  # increase it when a seed gives different pairs than before


class SyntheticReports(RecordSource):
    """Chapters of synthetic reports in the styles of many departments. Pair n depends on the seed and n alone.

    Args:
        count: number of pairs.
        seed: seed of all random choices.
        copy_fraction: fraction of pairs whose document is just the record's text; copying is learned on these.
        unseen: use held-out words, which training data never contains: for measuring.
        hard_fraction: fraction of pairs that are hard to copy, because words are altered and repeated.
        brief_fraction: fraction of the hard pairs that have many blocks of few words, so that it is hard to predict
            which block comes next.
        random_style_fraction: fraction of pairs whose department occurs once, in a style that no other pair has.
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        copy_fraction: float = 0.0,
        unseen: bool = False,
        hard_fraction: float = 0.0,
        brief_fraction: float = 0.0,
        random_style_fraction: float = 0.0,
    ) -> None:
        self.count = count
        self.seed = seed
        self.copy_fraction = copy_fraction
        self.unseen = unseen
        self.hard_fraction = hard_fraction
        self.brief_fraction = brief_fraction
        self.random_style_fraction = random_style_fraction

    def rows(self) -> Iterator[Row]:
        for index in range(self.count):
            yield Row(f"synthetic record {index} of seed {self.seed}", self.pair(index))

    def pair(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        writer = random_writer(self.seed, index, self.unseen)
        writer.hard = self.hard_fraction > 0 and writer.rng.random() < self.hard_fraction
        writer.brief = writer.hard and self.brief_fraction > 0 and writer.rng.random() < self.brief_fraction
        if writer.rng.random() < self.copy_fraction:
            chapter = copy_task(writer)
        else:
            one_off = self.random_style_fraction > 0 and writer.rng.random() < self.random_style_fraction
            chapter = make_chapter(writer, random_department(writer) if one_off else writer.rng.choice(DEPARTMENTS))
        return {"input": chapter.record, "output": render(chapter)}

    def fingerprint(self) -> str:
        return f"synthetic {VERSION} {vars(self)}"


def render(chapter: Chapter) -> str:
    """Returns the Typst source of a chapter in its department's style; of a copy task, the plain text."""
    if chapter.department == COPY_OFFICE:
        return "\n\n".join(escape(block.text) for block in chapter.blocks if isinstance(block, Paragraph)) + "\n"
    make_style = department_style if chapter.department in DEPARTMENTS else random_style
    return make_style(chapter.department).render(chapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON lines file to write the pairs to")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unseen", action="store_true", help="use the words that are held out of training")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that another program wrote")
    args = parser.parse_args()
    source = SyntheticReports(args.count, args.seed, unseen=args.unseen)

    def write(stream: BinaryIO) -> None:
        for row in source.rows():
            stream.write(json.dumps(row.value, ensure_ascii=False).encode() + b"\n")

    write_output(args.output, write, args.overwrite, hint="Use another output, or --overwrite to replace it.")


if __name__ == "__main__":
    main()
