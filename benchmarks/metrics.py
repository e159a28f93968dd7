"""What the metrics say of good documents, and of documents that were broken on purpose.

    python -m benchmarks.metrics pairs.json

Every reference is scored against itself, and in four broken copies: a paragraph dropped, a paragraph doubled, a heading
changed, and another record's document in its place.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typst_lit.metrics.documents import Document, DocumentMetric, document_metrics
from typst_lit.metrics.functional import words
from typst_lit.typesetting.typesetter import Typesetter

Pair = dict[str, Any]


def paragraph_of(source: str) -> str:
    """Returns the longest line of running text: one without code, and without markup that opens or closes."""
    lines = [line for line in source.split("\n") if not re.search(r"[#\[\]{}$`]", line)]
    return max(lines, key=lambda line: len(words(line)))


def drop_paragraph(source: str) -> str:
    return source.replace(paragraph_of(source), "", 1)


def double_paragraph(source: str) -> str:
    paragraph = paragraph_of(source)
    return source.replace(paragraph, f"{paragraph}\n\n{paragraph}", 1)


def change_heading(source: str) -> str:
    """Writes two other words into the last heading, or bold line, before the longest paragraph."""
    before, paragraph, after = source.partition(paragraph_of(source))
    found = list(re.finditer(r"^=+ (.+)$|\[([^\[\]#]*\w[^\[\]#]*)\]|\*([^*\n]+)\*", before, re.MULTILINE))
    if not found:
        return source
    last = found[-1]
    group = last.lastindex or 0
    return before[: last.start(group)] + "Quite Otherwise" + before[last.end(group) :] + paragraph + after


def other_text(pairs: Sequence[Pair], index: int) -> str:
    """Returns the document of the record that has the least in common with this one."""
    mine = set(words(pairs[index]["input"]["contents_txt"]))
    return min(pairs, key=lambda pair: len(mine & set(words(pair["input"]["contents_txt"]))))["output"]


def broken_copies(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Returns the sources as they are, and broken in each way."""
    ways: dict[str, Callable[[int], str]] = {
        "as they are": lambda index: pairs[index]["output"],
        "heading changed": lambda index: change_heading(pairs[index]["output"]),
        "paragraph dropped": lambda index: drop_paragraph(pairs[index]["output"]),
        "paragraph doubled": lambda index: double_paragraph(pairs[index]["output"]),
        "another record's": lambda index: other_text(pairs, index),
    }
    return {name: [way(index) for index in range(len(pairs))] for name, way in ways.items()}


def documents(pairs: Sequence[Pair], sources: Sequence[str], typesetter: Typesetter, ppi: float) -> list[Document]:
    """Compiles sources beside the pairs they stand for."""
    results = typesetter.compile_many(sources, ppi)
    references = typesetter.compile_many([pair["output"] for pair in pairs], ppi)
    return [
        Document(str(index), pair["input"], "contents_txt", source, result, pair["output"], reference)
        for index, (pair, source, result, reference) in enumerate(zip(pairs, sources, results, references, strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    args = parser.parse_args()
    pairs = json.loads(args.pairs.read_text("utf-8"))
    names = [name for name, metric in document_metrics().items() if isinstance(metric, DocumentMetric)]
    width = max(map(len, names))
    print(" " * 20 + "".join(f"{name:>{width + 2}}" for name in names))
    with Typesetter(normalize_paths=True) as typesetter:
        for way, sources in broken_copies(pairs).items():
            metrics = document_metrics()
            made = documents(pairs, sources, typesetter, ppi=72)
            row = ""
            for name in names:
                metrics[name].update(made)
                row += f"{float(metrics[name].compute()):>{width + 2}.4f}"
            print(f"{way:<20}{row}", flush=True)
            if way == "as they are":
                low = [(metrics["fidelity"].score(each), each) for each in made]  # type: ignore[operator]
                for score, each in sorted((pair for pair in low if pair[0] < 0.97), key=lambda pair: pair[0]):
                    shown = set(words(each.result.body))
                    given = words(each.fields["contents_txt"])
                    there = sum(word in shown for word in given) / len(given)
                    print(f"    record {each.origin}: fidelity {score:.4f}; in any order {there:.4f}")


if __name__ == "__main__":
    main()
