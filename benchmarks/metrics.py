"""The scores of good documents, and of the same documents broken on purpose.

    python -m benchmarks.metrics pairs.json

Each reference is scored against itself, and in four broken versions: a heading changed, a paragraph dropped, a
paragraph doubled, and the whole document replaced by another record's.
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

UNBROKEN = "as they are"
LOW_FIDELITY = 0.97  # references below this are listed
Pair = dict[str, Any]


def longest_paragraph(source: str) -> str:
    """Returns the longest line of running text: one without code, and without markup that opens or closes."""
    lines = [line for line in source.split("\n") if not re.search(r"[#\[\]{}$`]", line)]
    return max(lines, key=lambda line: len(words(line)))


def drop_paragraph(source: str) -> str:
    return source.replace(longest_paragraph(source), "", 1)


def double_paragraph(source: str) -> str:
    paragraph = longest_paragraph(source)
    return source.replace(paragraph, f"{paragraph}\n\n{paragraph}", 1)


def change_heading(source: str) -> str:
    """Replaces the words of the last heading, or bold line, before the longest paragraph."""
    before, paragraph, after = source.partition(longest_paragraph(source))
    headings = list(re.finditer(r"^=+ (.+)$|\[([^\[\]#]*\w[^\[\]#]*)\]|\*([^*\n]+)\*", before, re.MULTILINE))
    if not headings:
        return source
    group = headings[-1].lastindex or 0
    start, end = headings[-1].span(group)
    return before[:start] + "Quite Otherwise" + before[end:] + paragraph + after


def least_similar_document(pairs: Sequence[Pair], index: int) -> str:
    """Returns the document of the record that has the fewest words in common with this one."""
    vocabulary = set(words(pairs[index]["input"]["contents_txt"]))
    return min(pairs, key=lambda pair: len(vocabulary & set(words(pair["input"]["contents_txt"]))))["output"]


def broken_versions(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Returns the sources as they are, and broken in each way."""
    versions: dict[str, Callable[[int], str]] = {
        UNBROKEN: lambda index: pairs[index]["output"],
        "heading changed": lambda index: change_heading(pairs[index]["output"]),
        "paragraph dropped": lambda index: drop_paragraph(pairs[index]["output"]),
        "paragraph doubled": lambda index: double_paragraph(pairs[index]["output"]),
        "another record's": lambda index: least_similar_document(pairs, index),
    }
    return {name: [version(index) for index in range(len(pairs))] for name, version in versions.items()}


def compiled_documents(
    pairs: Sequence[Pair], sources: Sequence[str], typesetter: Typesetter, ppi: float
) -> list[Document]:
    """Compiles sources, and the references of the pairs that they belong to."""
    results = typesetter.compile_many(sources, ppi)
    references = typesetter.compile_many([pair["output"] for pair in pairs], ppi)
    return [
        Document(str(index), pair["input"], "contents_txt", source, result, pair["output"], reference)
        for index, (pair, source, result, reference) in enumerate(zip(pairs, sources, results, references, strict=True))
    ]


def print_low_fidelity(metric: DocumentMetric, documents: Sequence[Document]) -> None:
    """Prints the documents of low fidelity, and which share of their record's words they show in any order."""
    scores = [(metric.score(document) or 0.0, document) for document in documents]
    for score, document in sorted((item for item in scores if item[0] < LOW_FIDELITY), key=lambda item: item[0]):
        shown = set(words(document.result.body))
        expected = words(document.fields["contents_txt"])
        in_any_order = sum(word in shown for word in expected) / len(expected)
        print(f"    record {document.origin}: fidelity {score:.4f}; in any order {in_any_order:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    args = parser.parse_args()
    pairs = json.loads(args.pairs.read_text("utf-8"))
    names = [name for name, metric in document_metrics().items() if isinstance(metric, DocumentMetric)]
    width = max(map(len, names)) + 2
    print(" " * 20 + "".join(f"{name:>{width}}" for name in names))
    with Typesetter(normalize_paths=True) as typesetter:
        for version, sources in broken_versions(pairs).items():
            metrics = document_metrics()
            documents = compiled_documents(pairs, sources, typesetter, ppi=72)
            for name in names:
                metrics[name].update(documents)
            row = "".join(f"{float(metrics[name].compute()):>{width}.4f}" for name in names)
            print(f"{version:<20}{row}", flush=True)
            if version == UNBROKEN:
                print_low_fidelity(metrics["fidelity"], documents)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
