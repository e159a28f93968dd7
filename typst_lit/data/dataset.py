"""Training examples and held-out pairs, taken from tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from typst_lit.data.encoding import Example
from typst_lit.data.records import Field
from typst_lit.data.table import column


class TokenizedDataset(torch.utils.data.Dataset[Example]):
    """The rows of a tokenized table as examples.

    Args:
        table: a table of `tokenize`.
        completion_only_loss: whether the tokens of the prompts are masked in the labels.

    Attributes:
        lengths: (N,) tokens of each example.
    """

    def __init__(self, table: Dataset, completion_only_loss: bool = True) -> None:
        self.table = table
        self.completion_only_loss = completion_only_loss
        self.lengths = column(table, "length")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Example:
        row = self.table[index]
        return Example.from_ids(row["input_ids"], row["prompt_length"], row["origin"], self.completion_only_loss)

    def origin(self, index: int) -> str:
        """Returns where the record of an example comes from."""
        return str(self.table[index]["origin"])


class Pair(NamedTuple):
    """A record with its reference, the Typst source that a person wrote, and where it comes from."""

    origin: str
    fields: dict[str, Any]
    reference: str


def read_pairs(table: Dataset, fields: Sequence[Field], max_pairs: int | None = None) -> list[Pair]:
    """Returns the pairs of a table, or ``max_pairs`` of them, evenly spaced over the table."""
    if max_pairs is not None and max_pairs < len(table):
        table = table.select(np.unique(np.linspace(0, len(table) - 1, max_pairs).astype(int)))
    names = [field.name for field in fields]
    return [Pair(row["origin"], {name: row[name] for name in names}, row["reference"]) for row in table]
