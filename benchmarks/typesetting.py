"""How fast documents are compiled, and whether the compiler processes stay stable.

    python -m benchmarks.typesetting pairs.json                        # documents per second
    python -m benchmarks.typesetting pairs.json --endurance 100000     # failures and memory growth over N documents

The endurance run compiles the documents in turn. Two of three are damaged by removing a random piece (by a seed), as
the invalid documents of a model would be.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.typesetter import Typesetter

MIB = 2**20


def damaged(sources: Sequence[str], count: int, seed: int = 0) -> Iterator[str]:
    """Yields ``count`` documents, two of three damaged."""
    rng = random.Random(seed)
    for index in range(count):
        source = sources[index % len(sources)]
        if index % 3:
            start = rng.randrange(len(source))
            source = source[:start] + source[start + rng.randrange(1, 40) :]
        yield source


def resident_mib() -> tuple[float, float]:
    """Returns the resident memory of this process, and of its largest compiler process."""
    process = psutil.Process()
    workers = [child.memory_info().rss for child in process.children()]
    return process.memory_info().rss / MIB, max(workers, default=0) / MIB


def outcome(result: CompileResult) -> str:
    """Returns the category of a result, to count."""
    if result.ok:
        return "compiled"
    return "error in the source" if result.diagnostics[0].line is not None else result.error


def measure_speed(typesetter: Typesetter, sources: Sequence[str]) -> None:
    """Prints the documents per second, with and without page images."""
    list(typesetter.compile_many(["= Start"] * typesetter.workers))
    for outputs, ppi in (("PDF and text", None), ("PDF, text and images at 72 ppi", 72)):
        start = time.perf_counter()
        results = list(typesetter.compile_many(sources, ppi))
        seconds = time.perf_counter() - start
        print(
            f"{outputs}: {sum(result.ok for result in results)} of {len(results)} compiled, "
            f"{sum(result.page_count for result in results)} pages, {seconds:.2f} s "
            f"({len(results) / seconds:.0f} documents/s, {typesetter.workers} workers)"
        )


def measure_endurance(typesetter: Typesetter, sources: Sequence[str], count: int) -> None:
    """Prints time and memory ten times while documents are compiled, then the counts of the outcomes."""
    outcomes: collections.Counter[str] = collections.Counter()
    start = time.perf_counter()
    for number, result in enumerate(typesetter.compile_many(damaged(sources, count)), 1):
        outcomes[outcome(result)] += 1
        if number % max(1, count // 10) == 0:
            own, worker = resident_mib()
            print(
                f"{number}: {time.perf_counter() - start:.0f} s, this process {own:.0f} MiB, "
                f"largest worker {worker:.0f} MiB",
                flush=True,
            )
    print(dict(outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--endurance", type=int, default=0, metavar="N", help="number of documents; 0 for none")
    args = parser.parse_args()
    sources = [pair["output"] for pair in json.loads(args.pairs.read_text("utf-8"))]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, typst {version('typst')}")
    with Typesetter(workers=args.workers, normalize_paths=True) as typesetter:
        measure_speed(typesetter, sources)
        if args.endurance:
            measure_endurance(typesetter, sources, args.endurance)


if __name__ == "__main__":
    main()
