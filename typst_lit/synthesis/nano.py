"""Where typst-nano begins: a tokenizer learned from made-up chapters, and weights at random.

    python -m typst_lit.synthesis.nano DIRECTORY

``configs/pretrain_nano.yaml`` and ``make pretrain-nano`` say how it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from typst_lit.data.prompts import ReportPrompt
from typst_lit.model.tiny import make_tiny_model
from typst_lit.synthesis.source import SyntheticReports

TEXTS = 20_000  # chapters that the tokenizer is learned from


def _texts() -> Iterator[str]:
    source, prompt = SyntheticReports(TEXTS, seed=1), ReportPrompt()
    for index in range(TEXTS):
        pair = source.pair(index)
        yield prompt.render(pair["input"]) + pair["output"]


if __name__ == "__main__":
    print(make_tiny_model(sys.argv[1], _texts(), vocabulary=4096, hidden=256, layers=6))
