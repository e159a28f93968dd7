"""How documents are sampled: the settings. Importing this loads neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from typst_lit.errors import UserError

DEFAULT_BATCH_SIZE = 8  # documents that are decoded at the same time
# Lower temperatures sample greedily, as 0 does. Scores (up to some 1e4) divided by it stay far below the maximum of
# fp32, 3e38, and a token whose score is lower by only 0.01 has e^-100 times the probability of the most likely one.
MIN_TEMPERATURE = 1e-4
MAX_TOKENS_RATIO = 1.25  # of the token limit to the longest completion that an adapter was trained on


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


Sampling = Literal["greedy", "classic"]
# What each setting is where neither the user nor the adapter gives it
DEFAULTS: Mapping[str, Any] = {
    "max_tokens": 2048,
    "temperature": 0.0,
    "top_p": 0.95,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "seed": 0,
    "prompt_lookup": True,
    "deterministic": False,
    "valid_syntax": True,
    "checkpoints": True,
    "contract": True,
}
PRESETS: Mapping[Sampling, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.0},
    "classic": {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "max_tokens": 2048},
}
NOT_GIVEN: Any = None  # of a type that mypy accepts for a setting of any type: `__post_init__` replaces it


@dataclass(frozen=True)
class GenerationSettings:
    """How documents are sampled.

    A value that is not given, or None, is that of the adapter's run, if its configuration gave one, or else the default
    that is named here. `with_defaults` takes those of an adapter; all values that are passed to `dataclasses.replace`,
    and those that it copies, count as given.

    Args:
        max_tokens: maximum number of tokens of a document. By default 1.25 times the longest completion that the
            adapter was trained on, or 2048 where that is not known.
        temperature: 0, the default, always takes the most likely token, as does any value below 0.0001; 0.1 to 0.3
            keeps to the format, 0.7 varies it.
        top_p: sample only among the most likely tokens that together have this probability; the most likely one is
            always among them. By default 0.95; without effect at temperature 0.
        top_k: sample only among this many most likely tokens; 0 for all. By default 50; without effect at
            temperature 0.
        repetition_penalty: above 1, tokens that were already generated become less likely. The prompt's tokens do not
            count as such, as copying them is the task; with a text contract, they do not become less likely either.
            By default 1.
        seed: makes sampling repeatable. By default 0.
        prompt_lookup: speculative decoding with drafts that are copied from the record and from earlier documents. The
            documents are the same without it, up to rounding, and take several times as long. By default true.
        deterministic: decode each document alone and without drafts, so that it is the same whatever is decoded with
            it. Otherwise the shapes of matrix products, which round differently, depend on the batch and on drafts,
            and a document can change where two tokens are almost equally likely. Several times slower. By default
            false.
        valid_syntax: never sample a token after which the document can't become valid Typst, and close what is open
            where the model ends it. By default true.
        checkpoints: compile the document while it is decoded, where it has code, and go back where that fails; needs
            valid_syntax. By default true.
        contract: let the document's text keep to what held in the adapter's training pairs: which words may be where,
            that lines are copied as they are, in order, and all of them; needs valid_syntax. By default true.
        sampling: several settings together, each of which can also be given. greedy: temperature 0, repetition penalty
            1. classic: temperature 0.7, top-p 0.95, top-k 50, repetition penalty 1.1, at most 2048 tokens.

    Attributes:
        explicit: the names of the settings that were given; the others have their defaults.

    Raises:
        UserError: naming a value that is out of range.

    Example:
        >>> settings = GenerationSettings(temperature=0.2)
        >>> settings.max_tokens, settings.temperature, settings.explicit
        (2048, 0.2, frozenset({'temperature'}))
        >>> GenerationSettings(sampling="classic", temperature=0.2).repetition_penalty
        1.1
    """

    max_tokens: int = NOT_GIVEN
    temperature: float = NOT_GIVEN
    top_p: float = NOT_GIVEN
    top_k: int = NOT_GIVEN
    repetition_penalty: float = NOT_GIVEN
    seed: int = NOT_GIVEN
    prompt_lookup: bool = NOT_GIVEN
    deterministic: bool = NOT_GIVEN
    valid_syntax: bool = NOT_GIVEN
    checkpoints: bool = NOT_GIVEN
    contract: bool = NOT_GIVEN
    sampling: Sampling | None = field(default=None, compare=False)
    explicit: frozenset[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        explicit = dict(PRESETS[self.sampling]) if self.sampling else {}
        explicit |= {name: value for name in DEFAULTS if (value := getattr(self, name)) is not NOT_GIVEN}
        for name, value in {**DEFAULTS, **explicit}.items():
            if name in RANGES and value not in RANGES[name]:
                raise UserError(f"must be {RANGES[name]}, not {value}.", setting=f"generation.{name}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "explicit", frozenset(explicit))

    @property
    def uses_drafts(self) -> bool:
        """Whether drafts are verified."""
        return self.prompt_lookup and not self.deterministic

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def explicit_values(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        return {name: value for name, value in self.values().items() if name in self.explicit}

    def values(self) -> dict[str, Any]:
        """Returns the settings by name."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def with_defaults(self, defaults: GenerationSettings) -> GenerationSettings:
        """Returns these settings, with those that ``defaults`` was given where these were not.

        >>> stored = GenerationSettings(temperature=0.2, seed=3)
        >>> GenerationSettings(temperature=0.5).with_defaults(stored).explicit_values
        {'temperature': 0.5, 'seed': 3}
        """
        return GenerationSettings(**{**defaults.explicit_values, **self.explicit_values})


def adapter_settings(stored: Mapping[str, Any], max_completion_tokens: int | None) -> GenerationSettings:
    """Returns the settings of an adapter, to be passed to `GenerationSettings.with_defaults`.

    Args:
        stored: settings by name, as the configuration of the adapter's run gave them. Other names are of a newer
            version, and have no effect.
        max_completion_tokens: number of tokens of the longest completion that it was trained on; None if it is not
            known.

    Raises:
        UserError: when a value has the wrong type or is out of range.

    Example:
        >>> adapter_settings({"temperature": 0.2}, max_completion_tokens=1001).explicit_values
        {'max_tokens': 1252, 'temperature': 0.2}
    """
    values = {name: value for name, value in stored.items() if name in DEFAULTS}
    for name, value in values.items():
        allowed = (int, float) if isinstance(DEFAULTS[name], float) else type(DEFAULTS[name])
        if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
            raise UserError(f"has the wrong type ({value!r}).", setting=f"generation.{name}")
    if max_completion_tokens is not None:
        values.setdefault("max_tokens", math.ceil(MAX_TOKENS_RATIO * max_completion_tokens))
    return GenerationSettings(**values)
