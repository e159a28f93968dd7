"""How fast and how steadily documents are compiled.

    python -m benchmarks.typesetting pairs.json                        # documents a second
    python -m benchmarks.typesetting pairs.json --endurance 100000     # so many in a row: deaths, and memory growth

The endurance run compiles the documents in turn, two of three with a piece cut out of them at random (by a seed), as a
model's faulty documents would be.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil

from typst_lit.typesetting.typesetter import Typesetter


def faulty(sources: list[str], count: int, seed: int = 0) -> Iterator[str]:
    """Yields ``count`` documents, two of three damaged."""
    rng = random.Random(seed)
    for number in range(count):
        source = sources[number % len(sources)]
        if number % 3:
            start = rng.randrange(len(source))
            source = source[:start] + source[start + rng.randrange(1, 40) :]
        yield source


def resident_mib() -> tuple[float, float]:
    """Returns the resident memory of this process, and of its largest worker."""
    own = psutil.Process()
    workers = [child.memory_info().rss for child in own.children()]
    return own.memory_info().rss / 2**20, max(workers, default=0) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--endurance", type=int, default=0)
    args = parser.parse_args()
    sources = [pair["output"] for pair in json.loads(args.pairs.read_text("utf-8"))]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, typst {version('typst')}")
    with Typesetter(workers=args.workers, normalize_paths=True) as typesetter:
        list(typesetter.compile_many(["= Start"] * typesetter.workers))
        for what, ppi in (("PDF and text", None), ("PDF, text and pictures at 72 ppi", 72)):
            started = time.perf_counter()
            results = list(typesetter.compile_many(sources, ppi))
            seconds = time.perf_counter() - started
            pages = sum(result.page_count for result in results)
            print(
                f"{what}: {sum(result.ok for result in results)} of {len(results)} compiled, {pages} pages, "
                f"{seconds:.2f} s ({len(results) / seconds:.0f} documents/s, {typesetter.workers} workers)"
            )
        if not args.endurance:
            return
        outcomes: collections.Counter[str] = collections.Counter()
        started = time.perf_counter()
        for number, result in enumerate(typesetter.compile_many(faulty(sources, args.endurance)), 1):
            in_source = not result.ok and result.diagnostics[0].line is not None
            outcomes["compiled" if result.ok else "error in the source" if in_source else result.error] += 1
            if number % (args.endurance // 10) == 0:
                own, worker = resident_mib()
                seconds = time.perf_counter() - started
                print(
                    f"{number}: {seconds:.0f} s, this process {own:.0f} MiB, largest worker {worker:.0f} MiB",
                    flush=True,
                )
        print(dict(outcomes))


if __name__ == "__main__":
    main()
