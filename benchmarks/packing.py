"""How full packed rows get, and how full they could get at all.

    python -m benchmarks.packing OUTPUT TOKENIZER PAIRS [--capacity 4096 8192 16384]      (pip install scipy)

Documents are never split, so there is a least number of rows. A bound on it comes from Gilmore and Gomory's linear
programme of bin packing: rows may be used in part, and are made up one after the other as long as one would help. Rows
are never filled up with padding: a batch has as many places as tokens, whatever its rows lack. Writes OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import linprog
from transformers import AutoTokenizer

from benchmarks.harness import about
from typst_lit.data.batching import PackedSampler, PackingCollator
from typst_lit.data.encoding import Encoder, Example
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.sources import FileSource


def least_rows(lengths: Sequence[int], capacity: int) -> float:
    """Returns a number of rows that no packing of these lengths can go below."""
    counts = Counter(lengths)
    sizes = sorted(counts, reverse=True)
    wanted = np.array([counts[size] for size in sizes])
    rows = list(np.eye(len(sizes)))
    while True:
        solved = linprog(np.ones(len(rows)), A_ub=-np.array(rows).T, b_ub=-wanted, method="highs")
        worth = -solved.ineqlin.marginals  # of one document of each size
        best, row = _most_worth(sizes, wanted, worth, capacity)
        if best <= 1 + 1e-9:
            return float(solved.fun)
        rows.append(row)


def _most_worth(sizes: list[int], counts: np.ndarray, worth: np.ndarray, capacity: int) -> tuple[float, np.ndarray]:
    """Returns the row of the most worth: a knapsack with so many of each size."""
    best = np.zeros(capacity + 1)
    taken = []
    for size, count, value in zip(sizes, counts, worth, strict=True):
        before, choice = best.copy(), np.zeros(capacity + 1, dtype=int)
        for number in range(1, min(count, capacity // size) + 1):
            with_them = np.full(capacity + 1, -1.0)
            with_them[number * size :] = before[: capacity + 1 - number * size] + number * value
            choice[with_them > best + 1e-12] = number
            best = np.maximum(best, with_them)
        taken.append(choice)
    row, room = np.zeros(len(sizes)), int(best.argmax())
    for place in reversed(range(len(sizes))):
        row[place] = taken[place][room]
        room -= int(row[place]) * sizes[place]
    return float(best.max()), row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("pairs")
    parser.add_argument("--capacity", type=int, nargs="+", default=[4096, 8192, 16384])
    args = parser.parse_args()
    values = [row.value for row in FileSource(args.pairs).rows()]
    encoder = Encoder(AutoTokenizer.from_pretrained(args.tokenizer), ReportPrompt())
    encoded = encoder.encode([value["input"] for value in values], [value["output"] for value in values])
    found = []
    for capacity in args.capacity:
        examples = [
            Example.from_ids(ids, prompt)
            for ids, prompt in zip(encoded["input_ids"], encoded["prompt_length"], strict=True)
            if len(ids) <= capacity
        ]
        lengths = [len(example.input_ids) for example in examples]
        sampler = PackedSampler(lengths, batch_size=1, capacity=capacity)
        batches = [PackingCollator()([examples[place] for place in places]) for places in sampler]
        bound = least_rows(lengths, capacity)
        fewest = math.ceil(bound - 1e-6)
        full, at_best = (sum(lengths) / capacity / rows for rows in (sampler.num_rows, fewest))
        places = sum(batch.input_ids.numel() for batch in batches)
        sizes = {"capacity": capacity, "documents": len(lengths), "tokens": sum(lengths), "rows": sampler.num_rows}
        rest = {"bound": bound, "fewest_possible": fewest, "full": full, "full_at_best": at_best}
        found.append({**sizes, **rest, "real_tokens_of_places": sum(lengths) / places})
        print(found[-1], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps({**about(), "found": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
