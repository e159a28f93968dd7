"""Speculative decoding of many documents at once.

Each forward pass takes the last token of each document and a draft of what may follow
(`typst_lit.inference.prompt_lookup`). It gives the logits after every one of these tokens, so that the sampler can
choose there as it always does. As long as it chooses what the draft says, the next choice counts as well; the first
choice that differs is the last that counts, and what the pass wrote after it is overwritten. So a document is the one
that decoding token by token gives, greedy or sampled, in fewer passes (Leviathan et al., 2023, with a draft of
probability 1).

Documents join and leave between passes, whatever their lengths (`typst_lit.inference.kv_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from typst_lit.errors import UserError
from typst_lit.inference.kv_cache import RaggedCache
from typst_lit.inference.prompt_lookup import DraftCorpus, Drafter, IndexedText, best_width
from typst_lit.inference.sampling import GenerationSettings, Sampler

PREFILL = 1024  # tokens of a prompt in one forward pass
# Time of one more token in a forward pass, as a share of the pass. Estimates: a pass reads all weights from memory, and
# until arithmetic takes as long as that, more tokens cost little. Wrong ones cost time, never another document.
DRAFT_COST = {"cpu": 1 / 32, "cuda": 1 / 256}


@dataclass(eq=False)
class Row:
    """A document that is being decoded.

    Attributes:
        prompt: ids of its prompt.
        settings: how to sample.
        seed: what its random numbers are made from.
        finish_reason: None while it goes on; then ``stop`` (the model ended it) or ``length`` (the limit did).
        passes: forward passes that it took part in, the prompt's not counted.
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    seed: int | Sequence[int]
    finish_reason: str | None = None
    passes: int = 0
    text: IndexedText = field(init=False)

    def __post_init__(self) -> None:
        self.text = IndexedText(self.prompt)
        self.sampler = Sampler(self.settings, self.seed)
        self.drafter = Drafter(self.text, DraftCorpus())  # the decoder brings its own shelf
        self.most = self.settings.max_tokens

    @property
    def output(self) -> list[int]:
        """The tokens so far, the end token not among them."""
        return self.text.tokens[len(self.prompt) :]

    def fit(self, context: int | None, offset: int = 0) -> None:
        """Limits the document to what a model's context leaves, after a soft prompt of ``offset`` tokens.

        Raises:
            UserError: when the prompt leaves no room for a document.
        """
        if context is not None:
            self.most = min(self.most, context - offset - len(self.prompt))
        if self.most < 1:
            raise UserError(
                f"a record's prompt has {len(self.prompt)} tokens, and the model reads {context}: shorten its text."
            )


class Decoder:
    """Decodes rows together.

    Args:
        model: a model in evaluation mode, with or without an adapter.
        ends: ids that end a document.
        shelf: finished texts to draft from; this decoder adds its own.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, ends: Sequence[int], shelf: DraftCorpus) -> None:
        self.rows: list[Row] = []
        self.model = model
        self.ends = frozenset(ends)
        self.shelf = shelf
        self.device = model.device
        # A soft prompt goes into the cache once; any other adapter sits inside of the model.
        self._soft = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        whole: Any = model
        self._forward: Any = whole.get_base_model() if self._soft else whole
        self._config: Any = self._forward.config.get_text_config()
        self._window = _sliding_window(self._config)
        self._context = getattr(self._config, "max_position_embeddings", None)
        self._cache: RaggedCache | None = None
        self._offset: int = model.active_peft_config.num_virtual_tokens if self._soft else 0  # type: ignore[union-attr, assignment]

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of rows, which then take part in every step until they are finished.

        Raises:
            UserError: when a prompt leaves no room in the model's context for a document.
        """
        for row in rows:
            row.fit(self._context, self._offset)
        caches = [self._read(row) for row in rows]
        for row in rows:
            row.drafter = Drafter(row.text, self.shelf)
        self._cache = RaggedCache.join([*([self._cache] if self.rows and self._cache else []), *caches])
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> None:
        """Decodes one or more tokens of every row. Rows that are finished leave, their text goes onto the shelf."""
        assert self._cache is not None
        drafts = self._drafts()
        fed = [[row.text.tokens[-1], *draft] for row, draft in zip(self.rows, drafts, strict=True)]
        width = max(map(len, fed))
        # The pads are written after the tokens that count, where nothing looks and the next step writes.
        ids = torch.tensor([tokens + [tokens[-1]] * (width - len(tokens)) for tokens in fed])
        starts = [self._offset + len(row.text.tokens) - 1 for row in self.rows]
        logits = self._pass(self._cache, starts, input_ids=ids.to(self.device))
        picks = [
            row.sampler.choose(logits[place, : len(draft) + 1], draft)
            for place, (row, draft) in enumerate(zip(self.rows, drafts, strict=True))
        ]
        chosen = torch.cat(picks).tolist()  # the only synchronisation of a step
        for row, draft in zip(self.rows, drafts, strict=True):
            self._accept(row, draft, chosen[: len(draft) + 1])
            del chosen[: len(draft) + 1]
        self._drop_finished()

    def set_adapter(self, name: str) -> None:
        """Lets the adapter of this name answer, where there are adapters. No row is under way then."""
        if isinstance(self.model, PeftModel):
            self.model.set_adapter(name)

    def remove(self, row: Row) -> None:
        """Takes a row out that nobody waits for any longer."""
        row.finish_reason = "cancelled"
        self._drop_finished()

    def _drafts(self) -> list[list[int]]:
        # One token less than is wanted: the pass itself gives one more than the draft.
        drafts = [row.drafter.draft(row.most - len(row.output) - 1 if row.settings.draft else 0) for row in self.rows]
        width = best_width(drafts, DRAFT_COST.get(self.device.type, 1 / 256))
        return [draft.tokens[:width] for draft in drafts]

    def _accept(self, row: Row, draft: list[int], chosen: list[int]) -> None:
        kept: list[int] = []
        for place, token in enumerate(chosen):
            if token in self.ends:
                row.finish_reason = "stop"
                break
            kept.append(token)
            if place == len(draft) or token != draft[place]:
                break
        row.drafter.accept(len(kept) - (row.finish_reason is None))
        row.sampler.accept(kept)
        row.text.extend(kept)
        row.passes += 1
        if row.finish_reason is None and len(row.output) >= row.most:
            row.finish_reason = "length"

    def _drop_finished(self) -> None:
        going = [place for place, row in enumerate(self.rows) if row.finish_reason is None]
        if len(going) == len(self.rows):
            return
        for row in self.rows:
            if row.finish_reason == "stop":
                self.shelf.add(row.text)
        self.rows = [self.rows[place] for place in going]
        if self.rows and self._cache:
            self._cache.keep(going)
        else:
            self._cache = None

    def _read(self, row: Row) -> RaggedCache:
        """Returns a cache that holds a prompt. Its last token is fed again, and written again, by the first step."""
        cache = RaggedCache(self._config.num_hidden_layers)
        if self._soft:
            self._put_soft_prompt(cache)
        ids = torch.tensor([list(row.prompt)], device=self.device)
        for start in range(0, ids.shape[1], PREFILL):
            self._pass(cache, [self._offset + start], input_ids=ids[:, start : start + PREFILL], logits_to_keep=1)
        return cache

    def _put_soft_prompt(self, cache: RaggedCache) -> None:
        prompt: Any = self.model.get_prompt(batch_size=1)  # type: ignore[operator]
        if isinstance(prompt, Tensor):  # prompt tuning: embeddings
            self._pass(cache, [0], inputs_embeds=prompt.to(self._forward.dtype), logits_to_keep=1)
            return
        cache.place([0], self._offset, self.device)  # prefix tuning: keys and values
        for layer, prefix in zip(cache.layers, prompt.layers, strict=True):
            layer.update(prefix.keys, prefix.values)

    def _pass(self, cache: RaggedCache, starts: list[int], **inputs: Any) -> Tensor:
        (fed,) = (inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs)
        mask = cache.place(starts, fed.shape[1], self.device)
        output = self._forward(
            attention_mask=_per_layer_type(mask, cache.places, self._window, self._config),
            position_ids=cache.places,
            past_key_values=cache,
            use_cache=True,
            **inputs,
        )
        logits: Tensor = output.logits
        return logits


def _sliding_window(config: Any) -> int | None:
    """Returns the width of the window that some layers look through, or None.

    Raises:
        UserError: for a model with layers that keep another state than keys and values.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    if strange := kinds - {"full_attention", "sliding_attention"}:
        raise UserError(f"model.base_model: generation does not know layers of type {', '.join(sorted(strange))}.")
    window = getattr(config, "sliding_window", None)
    return window if not kinds or "sliding_attention" in kinds else None


def _per_layer_type(mask: Tensor, places: Tensor, window: int | None, config: Any) -> Tensor | dict[str, Tensor]:
    """Returns the mask as a model takes it: one for all layers, or one for each type of layer that it has."""
    if window is None:
        return mask
    near = torch.arange(mask.shape[-1], device=mask.device) > (places - window)[:, None, :, None]
    if "full_attention" in (getattr(config, "layer_types", None) or []):
        return {"full_attention": mask, "sliding_attention": mask & near}
    return mask & near
