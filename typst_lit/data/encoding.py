"""From text to token ids: one encoder for training and generation, and the length policy.

Prompt and completion are tokenised apart and their ids joined, so that the first token the model has to write is the
same in training and in generation. Text is never read as a special token: a record that quotes ``<|im_end|>`` can't
end a document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.table import cache_key
from typst_lit.errors import UserError

IGNORE_INDEX = -100  # the label of a token that is not learned, as torch's cross-entropy has it


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        input_ids: prompt, completion, end token; (T,) ids.
        labels: what to learn at each place: the id itself, or `IGNORE_INDEX`; (T,).
        prompt_length: how many ids are the prompt's.
        origin: where the record stood.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    origin: str

    @classmethod
    def from_ids(
        cls, input_ids: Sequence[int], prompt_length: int, origin: str = "", completion_only_loss: bool = True
    ) -> Example:
        """Returns the example of (T,) ids, with the prompt's labels masked unless its tokens are learned too."""
        ids = list(input_ids)
        num_masked = prompt_length if completion_only_loss else 0
        return cls(ids, [IGNORE_INDEX] * num_masked + ids[num_masked:], prompt_length, origin)


class Encoder:
    """Renders and tokenises records with one tokenizer and one template.

    Raises:
        UserError: when the tokenizer has no end token: a model trained without one never stops.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} names no end token (eos_token), so that a model trained "
                "with it would never stop. Set eos_token in its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        self.template = template

    @cached_property
    def prefix(self) -> list[int]:
        """The ids that this tokenizer puts before any text: its begin token, or nothing."""
        begin = self.tokenizer.bos_token_id
        return [begin] if begin is not None and self.tokenizer("a")["input_ids"][0] == begin else []

    @cached_property
    def fingerprint(self) -> str:
        """A key that changes whenever the ids of a record would."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else sorted(self.tokenizer.get_vocab().items())
        return cache_key(vocabulary, self.prefix, self.tokenizer.eos_token_id, self.template.describe())

    def prompts(self, records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Returns the ids of each record's prompt."""
        return self.encode_texts([self.template.render(record) for record in records])

    def encode_texts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of prompts that are already rendered."""
        return [self.prefix + ids for ids in self._ids(prompts)]

    def completions(self, references: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each reference, the end token last."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._ids(references)]

    def encode(self, records: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, list[Any]]:
        """Returns ``input_ids`` and ``prompt_length`` of each pair: columns for a table."""
        prompts, completions = self.prompts(records), self.completions(references)
        return {
            "input_ids": [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
            "prompt_length": [len(prompt) for prompt in prompts],
        }

    def truncate_body(self, record: Mapping[str, Any], completion_length: int, max_length: int) -> list[int] | None:
        """Returns the ids of the record's prompt with its body cut so that prompt and completion fit.

        None when they do not fit even with an empty body. The cut is the longest that fits, found by bisection over
        the characters, because the prompt is rendered by the template and not taken apart here.
        """
        body = record[self.template.body_field]

        def prompt(characters: int) -> list[int]:
            return self.prompts([{**record, self.template.body_field: body[:characters]}])[0]

        room = max_length - completion_length
        if len(prompt(0)) > room:
            return None
        low, high = 0, len(body)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(prompt(middle)) <= room else (low, middle - 1)
        return prompt(low)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "encode_batch_fast"):
            return list(self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"])
        # The same by the library beneath, a quarter faster: it need not note where in the text each token stood.
        before = backend.encode_special_tokens, backend.padding, backend.truncation
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        try:
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = before[0]
            if before[1] is not None:
                backend.enable_padding(**before[1])
            if before[2] is not None:
                backend.enable_truncation(**before[2])
