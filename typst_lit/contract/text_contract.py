"""What the texts of the training pairs have in common. It is stored with the adapter, in ``typst_lit.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from typst_lit.errors import UserError


@dataclass(frozen=True)
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
        names: names in code that outputs use, those that start an expression with a ``#``; empty where any may be used.
        marks: characters that start markup in outputs, a slash for comments; empty where any may.
        ordered: whether the lines of the record's text are in order.
        complete: whether all of them are shown.
        copied: whether a line that is started is copied to its end.
        exact: whether punctuation is that of the record.
        repeated_lines: how many lines at the start of the text may be shown twice, as on a title page.
        unescaped: characters of Typst's markup that are copied from records as they are; the others are escaped.
        break_characters: characters of a line next to which markup is inserted; None where it is inserted anywhere.
        inner_marks: the marks that start or end markup there.
        exceptions: pairs that do not keep to this, by what they break; for the reader only.

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
    marks: str = ""
    ordered: bool = False
    complete: bool = False
    copied: bool = False
    exact: bool = False
    repeated_lines: int = 0
    unescaped: str = ""
    break_characters: str | None = None
    inner_marks: str = ""
    exceptions: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the contract as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TextContract:
        """Returns the contract of plain values that `to_json` returned.

        Raises:
            UserError: when they are none.
        """
        names = {field.name for field in fields(cls)}
        try:
            contract = cls(**{key: _hashable(value) for key, value in values.items() if key in names})
        except TypeError as error:
            raise UserError(f"the text contract is damaged ({error}).") from None
        if not isinstance(contract.min_fidelity, (int, float)) or not all(
            isinstance(word, str) for word in contract.style_words
        ):
            raise UserError("the text contract is damaged (a value has the wrong type).")
        return contract


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
