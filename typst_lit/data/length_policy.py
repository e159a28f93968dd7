"""What happens to samples that are too long. Every sample that is truncated or dropped is logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, concatenate_datasets

from typst_lit._compat.datasets import fingerprint
from typst_lit.data.encoding import Encoder
from typst_lit.data.table import cached_map, column, record_origins
from typst_lit.errors import UserError, listing
from typst_lit.files import cache_key

log = logging.getLogger(__name__)
Overlength = Literal["drop", "truncate_text", "truncate_completion", "error"]


@dataclass(frozen=True)
class LengthPolicy:
    """The maximum number of tokens per sample, and what happens to longer samples.

    Attributes:
        max_length: the maximum number of tokens.
        overlength: ``drop`` longer samples; ``truncate_text``: shorten the record's text in the prompt;
            ``truncate_completion``: cut the end of the completion, and the EOS token with it; or raise an ``error``.
    """

    max_length: int
    overlength: Overlength

    def apply(self, name: str, table: Dataset, encoder: Encoder) -> Dataset:
        """Returns the tokenized table without samples above ``max_length``, and logs which it dropped or truncated.

        Args:
            name: the name of the table in messages: ``train``, ``val`` or ``test``.
            table: a table of `tokenize`.
            encoder: the encoder that the table was tokenized with.

        Raises:
            UserError: when samples are too long and the policy is ``error``, or when no sample would be left.
        """
        lengths = column(table, "length")
        too_long = np.flatnonzero(lengths > self.max_length)
        if not len(too_long):
            return table
        longest = int(lengths.max())
        origins = record_origins(table, too_long)
        problem = (
            f"{len(too_long)} of {len(table)} {name} samples {'is' if len(too_long) == 1 else 'are'} longer than "
            f"{self.max_length} tokens (the longest has {longest})"
        )
        if self.overlength == "error":
            lines = [f"{origin}: {length} tokens" for origin, length in zip(origins, lengths[too_long], strict=True)]
            raise UserError(
                f"{problem}:\n{listing(lines)}",
                hint="Raise `data.max_length` (or `data.max_length_cap`), or choose `data.overlength=drop` or "
                "`data.overlength=truncate_text`.",
            )
        fitting = table.select(np.flatnonzero(lengths <= self.max_length))
        truncated = self._truncate(table.select(too_long), encoder)
        remaining = set(truncated["origin"])
        lines = [
            f"{origin}: {length} tokens{'' if origin in remaining else ', dropped'}"
            for origin, length in zip(origins, lengths[too_long], strict=True)
        ]
        log.warning(
            "%s. %s `data.max_length=%d` would keep all of them intact.\n%s",
            problem,
            self._summary(len(truncated), len(too_long) - len(truncated)),
            longest,
            listing(lines, 1000),
        )
        if len(truncated):
            fitting = concatenate_datasets([fitting, truncated])
        if not len(fitting):
            raise UserError(
                f"no {name} sample is left: all {len(table)} are longer than {self.max_length} tokens.",
                hint=f"Use `data.max_length={longest}`{self._alternative()}.",
            )
        return fitting

    def _alternative(self) -> str:
        """Returns what else a user can do about samples that are all too long."""
        return ", or choose `data.overlength=truncate_text`" if self.overlength == "drop" else ""

    def _summary(self, num_truncated: int, num_dropped: int) -> str:
        if self.overlength == "drop":
            return f"Dropped: {num_dropped}."
        if self.overlength == "truncate_text":
            return f"Text truncated: {num_truncated}; dropped, because the completion alone is too long: {num_dropped}."
        return (
            f"Completion truncated, without an EOS token: {num_truncated}; dropped, because the prompt alone is too "
            f"long: {num_dropped}."
        )

    def _truncate(self, table: Dataset, encoder: Encoder) -> Dataset:
        if self.overlength == "drop":
            return table.select([])
        return cached_map(
            table,
            self._truncate_rows,
            batched=True,
            batch_size=100,
            fn_kwargs={"encoder": encoder},
            features=table.features,
            new_fingerprint=cache_key(
                "truncate-1", fingerprint(table), encoder.fingerprint, self.max_length, self.overlength
            ),
            desc="Truncating",
        )

    def _truncate_rows(self, columns: Mapping[str, list[Any]], encoder: Encoder) -> dict[str, list[Any]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        truncated = [row for row in (self._truncate_row(row, encoder) for row in rows) if row is not None]
        return {name: [row[name] for row in truncated] for name in columns}

    def _truncate_row(self, row: dict[str, Any], encoder: Encoder) -> dict[str, Any] | None:
        """Returns the row with at most ``max_length`` ids, or None if no label would be left."""
        prompt_length = row["prompt_length"]
        if self.overlength == "truncate_completion":
            ids = row["input_ids"][: self.max_length]
            if prompt_length >= self.max_length:
                return None
        else:
            completion = row["input_ids"][prompt_length:]
            prompt = encoder.truncate_body(row, len(completion), self.max_length)
            if prompt is None:
                return None
            ids, prompt_length = [*prompt, *completion], len(prompt)
        return {**row, "input_ids": ids, "prompt_length": prompt_length, "length": len(ids)}
