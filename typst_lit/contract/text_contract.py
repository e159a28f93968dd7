"""What the texts of the training pairs have in common. It is stored with the adapter, in ``typst_lit.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from typst_lit.errors import UserError

NUM_GAPS = 8  # stretches without visible letters that are compared


@dataclasses.dataclass(frozen=True)
class TextContract:
    """What held in the training pairs, from record to rendered text.

    Attributes:
        num_pairs: training pairs that it was learned from.
        typst_version: version of the compiler that rendered them.
        min_fidelity: 5th percentile of the fidelity of the training outputs themselves, 0 to 1.
        style_words: words that the outputs show although their records do not have them, in the form of
            `metrics.functional.words`; only those that outputs of several projects share.
        contexts: for each context of `typesetting.syntax.Piece`, where its words come from: names of fields, and
            ``body``, ``style`` and ``free`` of `contract.record_text`; ``free`` is for words from elsewhere.
        names: names that follow a ``#`` in outputs, and ``$`` where there are equations; empty where any may be used.
        rules: what follows ``#set`` and ``#show``, as ``set text``; None where any name may.
        values: names after a ``#`` that are not called, as ``#project``; None where any may be.
        fields: names of fields and methods, after a period; None where any may be.
        code: whether Typst code in records, such as a figure, is code in outputs.
        marks: characters that start markup in outputs, a slash for comments; empty where any may.
        ordered: whether the lines of the record's text are in order.
        copied: whether a line that is started is copied to its end.
        min_shown: 5th percentile of the share of lines that are shown, 0 to 1.
        max_deviations: 95th percentile of the number of words that do not keep to the rest of the contract.
        exact: whether punctuation is that of the record.
        repeated_lines: how many lines at the start of the text may be shown twice, as most outputs do on a title page.
        unescaped: characters of Typst's markup that are copied from records as they are; the others are escaped.
        break_characters: characters of a line next to which markup is inserted; None where it is inserted anywhere.
        inner_marks: the marks that start or end markup there.
        gaps: how many characters of a source have no visible letter among them: the longest such stretch of any output,
            the longest of those that are second in their output, and so on; empty where there is no limit.
        num_exceptions: training pairs with more deviations, or fewer lines.

    Example:
        >>> contract = TextContract(num_pairs=3, typst_version="0.15.2", min_fidelity=0.97, style_words=("page",))
        >>> TextContract.from_json(contract.to_json()) == contract
        True
    """

    num_pairs: int
    typst_version: str
    min_fidelity: float
    style_words: tuple[str, ...] = ()
    contexts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    names: tuple[str, ...] = ()
    rules: tuple[str, ...] | None = None
    values: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    code: bool = False
    marks: str = ""
    ordered: bool = False
    copied: bool = False
    min_shown: float = 0.0
    max_deviations: int = 0
    exact: bool = False
    repeated_lines: int = 0
    unescaped: str = ""
    break_characters: str | None = None
    inner_marks: str = ""
    gaps: tuple[int, ...] = ()
    num_exceptions: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns the contract as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TextContract:
        """Returns the contract of plain values that `to_json` returned.

        Raises:
            UserError: when they are none.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        try:
            contract = cls(**{key: _hashable(value) for key, value in values.items() if key in names})
        except TypeError as error:
            raise UserError(f"the text contract is damaged ({error}).") from None
        if not isinstance(contract.min_fidelity, (int, float)) or not all(
            isinstance(word, str) for word in contract.style_words
        ):
            raise UserError("the text contract is damaged (a value has the wrong type).")
        return contract


def longest(gaps: Iterable[int]) -> tuple[int, ...]:
    """Returns the longest stretches without visible letters of a source, as a contract compares them."""
    return tuple(sorted(gaps, reverse=True)[:NUM_GAPS])


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
