"""From text to token ids: one encoder for training and generation.

Prompt and completion are tokenized apart and their ids joined, so that the first token the model has to generate is the
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
from typst_lit.errors import UserError
from typst_lit.files import cache_key

IGNORE_INDEX = -100  # the label of a token without a loss, as in torch's cross-entropy


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        input_ids: prompt, completion, EOS; (T,) ids.
        labels: the id to learn at each position, or `IGNORE_INDEX`; (T,), not shifted.
        prompt_length: number of ids of the prompt.
        origin: where the record comes from.

    >>> Example.from_ids([5, 6, 7, 2], prompt_length=2).labels
    [-100, -100, 7, 2]
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    origin: str

    @classmethod
    def from_ids(
        cls, input_ids: Sequence[int], prompt_length: int, origin: str = "", completion_only_loss: bool = True
    ) -> Example:
        """Returns the example of (T,) ids, with the labels of the prompt masked if only the completion is learned."""
        ids = list(input_ids)
        num_masked = prompt_length if completion_only_loss else 0
        return cls(ids, [IGNORE_INDEX] * num_masked + ids[num_masked:], prompt_length, origin)


class Encoder:
    """Renders and tokenizes records with one tokenizer and one template.

    Args:
        tokenizer: the tokenizer of the model.
        template: how a record becomes a prompt.

    Raises:
        UserError: if the tokenizer has no EOS token: a model that was trained without one never stops.

    >>> from typst_lit.data import FormatPrompt
    >>> from typst_lit.model.backbones import PretrainedBackbone
    >>> tokenizer = PretrainedBackbone().load_tokenizer("typst-nano", None, False)
    >>> encoder = Encoder(tokenizer, FormatPrompt("{title}\\n\\n"))
    >>> columns = encoder.encode([{"title": "Night buses"}], ["= Night buses"])
    >>> ids, prompt_length = columns["input_ids"][0], columns["prompt_length"][0]
    >>> tokenizer.decode(ids[prompt_length:-1]), ids[-1] == tokenizer.eos_token_id
    ('= Night buses', True)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no EOS token (eos_token), so that a model trained with "
                "it would never stop.",
                hint="Set eos_token in its tokenizer_config.json.",
            )
        self.tokenizer = tokenizer
        self.template = template

    @cached_property
    def prefix(self) -> list[int]:
        """The ids that this tokenizer puts before any text: BOS, or nothing."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else []

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
        """Returns the ids of each reference, followed by EOS."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._ids(references)]

    def encode(self, records: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, list[Any]]:
        """Returns ``input_ids`` and ``prompt_length`` of each pair: columns for a table."""
        prompts, completions = self.prompts(records), self.completions(references)
        return {
            "input_ids": [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
            "prompt_length": [len(prompt) for prompt in prompts],
        }

    def truncate_body(self, record: Mapping[str, Any], completion_length: int, max_length: int) -> list[int] | None:
        """Returns the ids of the record's prompt, its body truncated so that prompt and completion fit.

        Returns None if they do not fit even with an empty body. As much of the body is kept as fits; how much that is
        is found by bisection over its characters, because only the template knows what the prompt is made of.

        Args:
            record: its fields.
            completion_length: tokens of the completion.
            max_length: the maximum number of tokens of prompt and completion.
        """
        body = record[self.template.body_field]

        def prompt(num_characters: int) -> list[int]:
            return self.prompts([{**record, self.template.body_field: body[:num_characters]}])[0]

        max_prompt_length = max_length - completion_length
        if len(prompt(0)) > max_prompt_length:
            return None
        low, high = 0, len(body)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(prompt(middle)) <= max_prompt_length else (low, middle - 1)
        return prompt(low)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "encode_batch_fast"):
            return list(self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"])
        # The same ids from the library beneath, a quarter faster, because it does not record the offsets of the tokens
        # in the text.
        special_tokens, padding, truncation = backend.encode_special_tokens, backend.padding, backend.truncation
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        try:
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            backend.encode_special_tokens = special_tokens
            if padding is not None:
                backend.enable_padding(**padding)
            if truncation is not None:
                backend.enable_truncation(**truncation)
