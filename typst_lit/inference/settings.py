"""How documents are sampled: the settings. Importing this loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass

from typst_lit.errors import UserError

DEFAULT_BATCH_SIZE = 8  # documents that are decoded at the same time
# Lower temperatures sample greedily, as 0 does. Scores (up to some 1e4) divided by it stay far below the maximum of
# fp32, 3e38, and a token whose score is lower by only 0.01 has e^-100 times the probability of the most likely one.
MIN_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Range:
    """The values that a setting may have.

    Attributes:
        minimum: the smallest value.
        maximum: the largest value; None if there is none.
        excludes_minimum: whether values must be above the minimum.

    >>> Range(0, 2), 3 in Range(0, 2), str(Range(0, 2))
    (Range(minimum=0, maximum=2, excludes_minimum=False), False, 'from 0 to 2')
    """

    minimum: int
    maximum: int | None = None
    excludes_minimum: bool = False

    def __contains__(self, value: float) -> bool:
        above_minimum = value > self.minimum if self.excludes_minimum else value >= self.minimum
        return above_minimum and (self.maximum is None or value <= self.maximum)

    def __str__(self) -> str:
        if self.maximum is None:
            return f"{self.minimum} or more"
        if self.excludes_minimum:
            return f"above {self.minimum} and up to {self.maximum}"
        return f"from {self.minimum} to {self.maximum}"


RANGES = {
    "max_tokens": Range(1),
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, excludes_minimum=True),
    "top_k": Range(0),
    "repetition_penalty": Range(1, 2),
    "seed": Range(0),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How documents are sampled.

    Args:
        max_tokens: maximum number of tokens of a document.
        temperature: 0 always takes the most likely token, as does any value below 0.0001; 0.1 to 0.3 keeps to the
            format, 0.7 varies it.
        top_p: sample only among the most likely tokens that together have this probability; the most likely one is
            always among them.
        top_k: sample only among this many most likely tokens; 0 for all.
        repetition_penalty: above 1, tokens that were already generated become less likely. The prompt's tokens do not
            count, as copying them is the task.
        seed: makes sampling repeatable.
        prompt_lookup: speculative decoding with drafts that are copied from the record and from earlier documents. The
            documents are the same without it, and take several times as long.
        valid_syntax: never sample a token after which the document can't become valid Typst, and close what is open
            where the model ends it.

    Raises:
        UserError: naming a value that is out of range.

    Example:
        >>> GenerationSettings(temperature=0).max_tokens
        2048
    """

    max_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    repetition_penalty: float = 1.1
    seed: int = 0
    prompt_lookup: bool = True
    valid_syntax: bool = True

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"must be {allowed}, not {value}.", setting=f"generation.{name}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < MIN_TEMPERATURE
