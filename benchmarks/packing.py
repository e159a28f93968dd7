"""How full packed rows are, and the best that is possible.

    python -m benchmarks.packing OUTPUT TOKENIZER PAIRS [--capacity 4096 8192 16384]      (pip install scipy)

Documents are never split, so there is a minimum number of rows. A lower bound on it comes from Gilmore and Gomory's
linear program of bin packing: rows may be used in fractions, and columns (ways to fill a row) are generated for as long
as another one would lower the bound. Rows are not filled up with padding: a batch has as many positions as tokens,
whatever its rows lack. Writes OUTPUT.json.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from transformers import AutoTokenizer

from benchmarks.harness import ResultFile, argument_parser
from typst_lit.data.batching import PackedSampler, PackingCollator
from typst_lit.data.encoding import Encoder, Example
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.sources import FileSource


def min_rows(lengths: Sequence[int], capacity: int) -> float:
    """Returns a lower bound on the number of rows of any packing of these lengths."""
    counts = Counter(lengths)
    sizes = sorted(counts, reverse=True)
    demand = np.array([counts[size] for size in sizes])
    rows = list(np.eye(len(sizes)))
    while True:
        solution = linprog(np.ones(len(rows)), A_ub=-np.array(rows).T, b_ub=-demand, method="highs")
        values = -solution.ineqlin.marginals  # of one document of each size
        value, row = _max_value_row(sizes, demand, values, capacity)
        if value <= 1 + 1e-9:
            return float(solution.fun)
        rows.append(row)


def _max_value_row(
    sizes: Sequence[int], counts: np.ndarray, values: np.ndarray, capacity: int
) -> tuple[float, np.ndarray]:
    """Returns the row of the highest total value (a bounded knapsack), as the number of documents of each size."""
    best = np.zeros(capacity + 1)
    choices = []
    for size, count, value in zip(sizes, counts, values, strict=True):
        previous, choice = best.copy(), np.zeros(capacity + 1, dtype=int)
        for number in range(1, min(count, capacity // size) + 1):
            total = np.full(capacity + 1, -1.0)
            total[number * size :] = previous[: capacity + 1 - number * size] + number * value
            choice[total > best + 1e-12] = number
            best = np.maximum(best, total)
        choices.append(choice)
    row, remaining = np.zeros(len(sizes)), int(best.argmax())
    for index in reversed(range(len(sizes))):
        row[index] = choices[index][remaining]
        remaining -= int(row[index]) * sizes[index]
    return float(best.max()), row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("pairs")
    parser.add_argument("--capacity", type=int, nargs="+", default=[4096, 8192, 16384], help="tokens per row")
    args = parser.parse_args()
    values = [row.value for row in FileSource(args.pairs).rows()]
    encoder = Encoder(AutoTokenizer.from_pretrained(args.tokenizer), ReportPrompt())
    encoded = encoder.encode([value["input"] for value in values], [value["output"] for value in values])
    results = ResultFile(args.output, args.overwrite)
    for capacity in args.capacity:
        examples = [
            Example.from_ids(ids, prompt_length)
            for ids, prompt_length in zip(encoded["input_ids"], encoded["prompt_length"], strict=True)
            if len(ids) <= capacity
        ]
        lengths = [len(example.input_ids) for example in examples]
        sampler = PackedSampler(lengths, batch_size=1, capacity=capacity)
        batches = [PackingCollator()([examples[index] for index in indices]) for indices in sampler]
        bound = min_rows(lengths, capacity)
        fewest_possible = math.ceil(bound - 1e-6)
        results.add(
            {
                "capacity": capacity,
                "documents": len(lengths),
                "tokens": sum(lengths),
                "rows": sampler.num_rows,
                "bound": bound,
                "fewest_possible": fewest_possible,
                "full": sum(lengths) / capacity / sampler.num_rows,
                "full_at_best": sum(lengths) / capacity / fewest_possible,
                "real_tokens_per_position": sum(lengths) / sum(batch.input_ids.numel() for batch in batches),
            }
        )
        print(results.trials[-1], flush=True)


if __name__ == "__main__":
    main()
