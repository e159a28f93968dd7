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

    Example:
        >>> contract = TextContract(num_pairs=3, typst_version="0.15.2", min_fidelity=0.97, style_words=("page",))
        >>> TextContract.from_json(contract.to_json()) == contract
        True
    """

    num_pairs: int
    typst_version: str
    min_fidelity: float
    style_words: tuple[str, ...] = ()

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
