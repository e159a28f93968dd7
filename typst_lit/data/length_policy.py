"""What becomes of samples that are too long. Nothing is ever cut or left out unseen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset, concatenate_datasets

from typst_lit.data.encoding import Encoder
from typst_lit.data.store import column, origins
from typst_lit.errors import UserError, listing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LengthPolicy:
    """The most tokens of a sample, and what to do with those that have more.

    Attributes:
        limit: most tokens.
        overlong: ``drop`` them, ``truncate`` them, or stop with an ``error``.
        truncate: what truncating shortens: the record's ``text`` in the prompt, or the ``completion``.
    """

    limit: int
    overlong: Literal["drop", "truncate", "error"]
    truncate: Literal["text", "completion"]

    def apply(self, name: str, table: Dataset, encoder: Encoder) -> Dataset:
        """Returns the tokenised table with the policy applied, and says which samples it touched.

        Raises:
            UserError: when there are overlong samples and the policy is to stop, or when none would be left.
        """
        lengths = column(table, "length")
        over = np.flatnonzero(lengths > self.limit)
        if not len(over):
            return table
        longest = int(lengths.max())
        named = zip(origins(table, over), lengths[over], strict=True)
        places = [f"{origin}: {length} tokens" for origin, length in named]
        told = (
            f"{len(over)} of {len(table)} {name} samples are longer than {self.limit} tokens (the longest: {longest})"
        )
        if self.overlong == "error":
            raise UserError(
                f"{told}:\n{listing(places)}\nRaise --data.max_length (or --data.max_length_cap), or choose "
                "--data.overlong drop or truncate."
            )
        kept = table.select(np.flatnonzero(lengths <= self.limit))
        done = "They are dropped"
        if self.overlong == "truncate":
            shorter = self._truncated(table.select(over), encoder)
            saved = set(shorter["origin"])
            places = [f"{place}{'' if place.rpartition(':')[0] in saved else ', dropped'}" for place in places]
            what, why = (
                ("their text shortened", "their completion alone does not fit")
                if self.truncate == "text"
                else ("their completion cut, without an end token", "no label would be left")
            )
            done = f"{len(saved)} have {what}; {len(over) - len(saved)} are dropped because {why}"
            kept = concatenate_datasets([kept, shorter]) if len(shorter) else kept
        log.warning(
            "%s. %s. --data.max_length %d would keep all whole.\n%s", told, done, longest, listing(places, 1000)
        )
        if not len(kept):
            raise UserError(
                f"no {name} sample is left: all {len(table)} are longer than {self.limit} tokens. "
                f"Raise --data.max_length to {longest}, or choose --data.overlong truncate."
            )
        return kept

    def _truncated(self, table: Dataset, encoder: Encoder) -> Dataset:
        if self.truncate == "completion":  # the cut itself happens when an example is taken
            return table.select(np.flatnonzero(column(table, "prompt_length") < self.limit))
        rows = []
        for row in table:
            completion = row["input_ids"][row["prompt_length"] :]
            prompt = encoder.shorten(row, len(completion), self.limit)
            if prompt is not None:
                ids = [*prompt, *completion]
                rows.append({**row, "input_ids": ids, "prompt_length": len(prompt), "length": len(ids)})
        return Dataset.from_list(rows, features=table.features) if rows else table.select([])
