"""Speculative decoding of a batch of documents.

Each forward pass takes the last token of each document and a draft of its continuation
(`typst_lit.inference.prompt_lookup`). It gives the logits after every one of these tokens, so that the sampler can
choose there as it always does. As long as it chooses what the draft says, the next choice counts as well; the first
choice that differs is the last that counts, and what the pass wrote after it is overwritten. So a document is the one
that decoding token by token gives, greedy or sampled, in fewer passes (Leviathan et al., 2023, with a draft of
probability 1).

Documents join and leave between passes, whatever their lengths (`typst_lit.inference.kv_cache`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.errors import UserError
from typst_lit.inference.constraints import OutputConstraint
from typst_lit.inference.kv_cache import KVCache, RaggedCache
from typst_lit.inference.prompt_lookup import Draft, DraftCorpus, PromptLookup, best_draft_length
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import INVALID_TOKEN, InvalidScoresError, choose_tokens
from typst_lit.inference.tracker import END, MIN_ODDS
from typst_lit.model.adapters import base_model, has_adapter, num_virtual_tokens

PREFILL_TOKENS = 1024  # tokens of a prompt per forward pass
NO_TOKEN = -3  # where none may follow
MAX_FORCED_TOKENS = 256  # per pass
# Time of one more token in a forward pass, as a fraction of the pass. Estimates: a pass reads all weights from memory,
# and until arithmetic takes as long as that, more tokens cost little. Wrong ones cost time, never another document.
TOKEN_COST = {"cpu": 1 / 32, "cuda": 1 / 256}


class BaseDecoder(ABC):
    """What an `Engine` decodes with: the built-in `Decoder`, or another backend's."""

    @abstractmethod
    def add(self, requests: Sequence[Request]) -> None:
        """Takes in requests, which then take part in every step until they have a finish reason.

        Raises:
            UserError: when a prompt leaves no space in the model's context for a document.
        """

    @abstractmethod
    def step(self) -> None:
        """Decodes some tokens of every request, and sets the finish reason of those that end, which then leave.

        Raises:
            InvalidScoresError: when the model's scores for one of them are not finite.
        """

    @abstractmethod
    def remove(self, requests: Collection[Request]) -> None:
        """Drops requests that are to be decoded no further; those that are not there are ignored."""

    @abstractmethod
    def set_adapter(self, name: str) -> None:
        """Activates the adapter of this name for the requests to come."""


class Decoder(BaseDecoder):
    """Decodes with a model of transformers.

    Args:
        model: a causal language model in evaluation mode, with or without an adapter.
        eos_token_ids: ids that end a document.
        corpus: finished documents to draft from; this decoder adds its own.
        constraint: which tokens may follow, for requests whose settings ask for it; None lets all follow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: Collection[int],
        corpus: DraftCorpus | None = None,
        constraint: OutputConstraint | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.corpus = DraftCorpus() if corpus is None else corpus
        self.constraint = constraint
        self.device = model.device
        # A soft prompt goes into the cache once; any other adapter is inside of the model.
        self._num_virtual_tokens = num_virtual_tokens(model)
        self._forward: Any = base_model(model) if self._num_virtual_tokens else model
        self._config: Any = self._forward.config.get_text_config()
        self._sliding_window = sliding_window(self._config)
        self._max_positions = getattr(self._config, "max_position_embeddings", None)
        self._cache = self._new_cache(num_rows=0)  # without the last token of each document, which the next pass feeds
        self._lookups: dict[Request, PromptLookup] = {}

    @torch.inference_mode()
    def add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.limit_to_context(self._max_positions, self._num_virtual_tokens)
        caches = [self._prefill(request) for request in requests]
        self._cache.admit(caches)
        self.requests += requests
        for request in requests:
            self._lookups[request] = PromptLookup(request.text, self.corpus)
            if self.constraint is not None:
                request.track(self.constraint)

    @torch.inference_mode()
    def step(self) -> None:
        for request in self.requests:
            self._go_back_if_invalid(request, wait=False)
        forced = [request.tracker.forced_tokens() if request.tracker else [] for request in self.requests]
        drafts = self._drafts(forced)
        fed = [[request.text.tokens[-1], *draft] for request, draft in zip(self.requests, drafts, strict=True)]
        width = max(map(len, fed))
        # The padding follows the tokens that count, none of which attends to it; it leaves the cache with wrong drafts.
        ids = torch.tensor([tokens + [tokens[-1]] * (width - len(tokens)) for tokens in fed])
        logits = self._forward_pass(self._cache, input_ids=ids.to(self.device))
        chosen = choose_tokens(logits, [request.sampler for request in self.requests], drafts)
        for row, (request, draft) in enumerate(zip(self.requests, drafts, strict=True)):
            self._accept(request, draft, min(len(forced[row]), len(draft)), chosen[row], logits[row])
            self._truncate_cache(row, request)
        for request in self.requests:
            if request.finish_reason == "stop":
                self.corpus.add(request.text)
        self._retain([request for request in self.requests if request.finish_reason is None])

    def set_adapter(self, name: str) -> None:
        if has_adapter(self.model):
            self.model.set_adapter(name)

    def remove(self, requests: Collection[Request]) -> None:
        self._retain([request for request in self.requests if request not in requests])

    def truncate(self, request: Request, num_tokens: int) -> None:
        """Drops the output of a request after its first tokens; what was drawn at random there is drawn again.

        Args:
            request: one that takes part in the next step.
            num_tokens: how many tokens of its output to keep.
        """
        length = len(request.prompt) + num_tokens
        request.text.truncate(length)
        request.sampler.truncate(num_tokens)
        self._lookups[request].truncate(length)
        self._truncate_cache(self.requests.index(request), request)
        if request.tracker is not None:
            request.tracker.truncate(num_tokens)

    def _drafts(self, forced: Sequence[list[int]]) -> list[list[int]]:
        """Returns the tokens of each request to verify: those that are forced, or a draft where none are."""
        drafts = []
        for request, tokens in zip(self.requests, forced, strict=True):
            # One token less than is left: the pass itself gives one more than the draft.
            num_left = request.max_tokens - request.num_generated - 1
            del tokens[min(num_left, MAX_FORCED_TOKENS) :]
            if tokens:
                drafts.append(Draft(tokens, 1.0))
            elif request.settings.uses_drafts:
                drafts.append(self._lookups[request].draft(num_left))
            else:
                drafts.append(Draft([], 0.0))
        length = best_draft_length(drafts, TOKEN_COST.get(self.device.type, 1 / 256))
        # What is forced is not cut: where it ends must not depend on other documents.
        return [tokens or draft.tokens[:length] for tokens, draft in zip(forced, drafts, strict=True)]

    def _accept(self, request: Request, draft: list[int], num_forced: int, chosen: list[int], logits: Tensor) -> None:
        """Adds the tokens of a pass that count to a request.

        Args:
            request: the request.
            draft: what was fed after its last token.
            num_forced: how many of the draft's tokens follow, unless the model is sure of another one.
            chosen: what was chosen after none, one, two, ... tokens of the draft.
            logits: (len(draft) + 1 or more, V), the scores there.
        """
        accepted: list[int] = []
        reason = None
        min_odds = request.tracker.min_odds if request.tracker else 0.0
        for position, token in enumerate(chosen):
            if token == INVALID_TOKEN:
                raise InvalidScoresError
            is_forced = (
                position < num_forced and token != draft[position]
            )  # odds wait for the device: only where needed
            if is_forced and _odds(logits[position], draft[position], token) >= min_odds:
                token = draft[position]
            if is_corrected := not self._append(request, token):
                token = self._choose_valid(request, draft[:position], logits[position], token)
            if token == NO_TOKEN:
                reason = "dead end"
                break
            if token in self.eos_token_ids or token == END:
                reason = "stop"
                break
            accepted.append(token)
            is_stalled = request.tracker is not None and request.tracker.is_stalled
            if position == len(draft) or token != draft[position] or is_corrected or is_stalled:
                break
        if not num_forced:
            self._lookups[request].accept(len(accepted) - (reason is None))
        request.sampler.accept(accepted)
        request.text.extend(accepted)
        request.passes += 1
        if reason is None and request.num_generated >= request.max_tokens:
            reason = "length"
        if request.tracker is not None:
            request.tracker.check_due(lambda count: self._decode(request.output[:count]))
        if reason == "dead end":
            self._leave_dead_end(request)
        elif reason is not None:
            self._finish(request, reason)
        elif request.tracker is not None and request.tracker.is_stalled:
            self._leave_stall(request)

    def _append(self, request: Request, token: int) -> bool:
        """Adds a token to what is known of a request's output; returns False if it must not follow."""
        if request.tracker is None:
            return True
        if token in self.eos_token_ids:
            return request.tracker.may_end()
        return request.tracker.append(token)

    def _choose_valid(self, request: Request, draft: list[int], logits: Tensor, invalid: int) -> int:
        """Chooses a token that may follow, after one that must not."""
        assert request.tracker is not None
        if invalid in self.eos_token_ids and (added := request.tracker.add_next_line()) is not None:
            return added
        token = request.sampler.choose_allowed(
            logits, draft, lambda token: self._append(request, token), request.tracker.suggested_tokens
        )
        if token is None:
            return NO_TOKEN
        if token in self.eos_token_ids or _odds(logits, token, invalid) >= MIN_ODDS:
            return token
        resolved = request.tracker.resolve_conflict(token, invalid)
        return NO_TOKEN if resolved is None else resolved

    def _finish(self, request: Request, reason: str) -> None:
        """Ends a request, unless a check of its output fails: then it goes back."""
        tracker = request.tracker
        if tracker is not None:
            tracker.check_end(self._decode(request.output))
            if self._go_back_if_invalid(request, wait=True):
                return
            request.closers = tracker.closers
        request.finish_reason = reason

    def _go_back_if_invalid(self, request: Request, wait: bool) -> bool:
        target = None if request.tracker is None else request.tracker.settle(wait)
        if target is not None:
            self._go_back(request, target)
        return target is not None

    def _leave_stall(self, request: Request) -> None:
        tracker = request.tracker
        assert tracker is not None
        target = tracker.leave_stall()
        if target is None:
            self._abandon(request)
            return
        self._go_back(request, target, is_stalled=True)
        if tracker.is_complete:
            self._finish(request, "stop")

    def _leave_dead_end(self, request: Request) -> None:
        tracker = request.tracker
        assert tracker is not None
        had_given_up = tracker.has_given_up
        target = None if tracker.has_failed_contract else tracker.leave_dead_end()
        if target is not None:
            self._go_back(request, target)
        elif request.may_abandon or tracker.has_contract:
            self._abandon(request)
        elif had_given_up:
            request.finish_reason, request.closers = "stop", tracker.closers

    def _abandon(self, request: Request) -> None:
        """Ends a request that went wrong where another attempt follows; else, continues without the text contract."""
        assert request.tracker is not None
        if request.may_abandon:
            request.finish_reason, request.closers = "abandoned", request.tracker.closers
        else:
            self.truncate(request, request.tracker.abandon_contract())

    def _go_back(self, request: Request, num_tokens: int, is_stalled: bool = False) -> None:
        """Goes back to a number of tokens, after which the next one is excluded."""
        assert request.tracker is not None
        excluded = request.output[num_tokens]
        self.truncate(request, num_tokens)
        request.tracker.exclude(excluded, is_stalled)

    def _decode(self, tokens: Sequence[int]) -> str:
        assert self.constraint is not None
        return self.constraint.decode(tokens)

    @torch.inference_mode()
    def _retain(self, requests: list[Request]) -> None:
        if len(requests) == len(self.requests):
            return
        rows = {request: row for row, request in enumerate(self.requests)}
        self._cache.select([rows[request] for request in requests])
        self._lookups = {request: self._lookups[request] for request in requests}
        self.requests = requests

    def _new_cache(self, num_rows: int) -> KVCache:
        return RaggedCache(self._config.num_hidden_layers, self.device, num_rows)

    def _truncate_cache(self, row: int, request: Request) -> None:
        self._cache.truncate(row, self._num_virtual_tokens + len(request.text.tokens) - 1)

    def _prefill(self, request: Request) -> KVCache:
        """Returns a cache of one row that holds a prompt without its last token, which the first step feeds."""
        cache = self._new_cache(num_rows=1)
        if self._num_virtual_tokens:
            self._prefill_soft_prompt(cache)
        ids = torch.tensor([list(request.prompt[:-1])], device=self.device)
        for start in range(0, ids.shape[1], PREFILL_TOKENS):
            chunk = ids[:, start : start + PREFILL_TOKENS]
            self._forward_pass(cache, input_ids=chunk, logits_to_keep=1)
        return cache

    def _prefill_soft_prompt(self, cache: KVCache) -> None:
        prompt: Any = self.model.get_prompt(batch_size=1)  # type: ignore[operator]
        if isinstance(prompt, Tensor):  # prompt tuning: embeddings
            self._forward_pass(cache, inputs_embeds=prompt.to(self._forward.dtype), logits_to_keep=1)
            return
        cache.allocate(self._num_virtual_tokens)  # prefix tuning: keys and values
        for index, prefix in enumerate(prompt.layers):
            cache.update(prefix.keys, prefix.values, index)

    def _forward_pass(self, cache: KVCache, **inputs: Any) -> Tensor:
        fed = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        mask = cache.allocate(fed.shape[1])
        output = self._forward(
            attention_mask=_masks_by_layer_type(mask, cache.positions, self._sliding_window, self._config),
            position_ids=cache.positions,
            past_key_values=cache,
            use_cache=True,
            **inputs,
        )
        logits: Tensor = output.logits
        return logits


def _odds(logits: Tensor, token: int, other: int) -> float:
    """Returns how much likelier a token is than another one, from their scores, (V,)."""
    return float((logits[token] - logits[other]).float().exp())


def eos_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every id that ends a document: the tokenizer's EOS token, which training uses, and the model's own.

    Args:
        config: the model's.
        tokenizer: its tokenizer.
    """
    own = getattr(config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ids = dict.fromkeys([tokenizer.eos_token_id, *own])
    return [id_ for id_ in ids if id_ is not None]


def sliding_window(config: Any) -> int | None:
    """Returns the width of the window in which some layers attend, or None.

    Args:
        config: a text model's.

    Raises:
        UserError: for a model with layers whose state is not keys and values.
    """
    layer_types = set(getattr(config, "layer_types", None) or [])
    if unknown := layer_types - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"generation does not support layers of type {', '.join(sorted(unknown))}.", setting="model.base_model"
        )
    window = getattr(config, "sliding_window", None)
    return window if not layer_types or "sliding_attention" in layer_types else None


def _masks_by_layer_type(
    mask: Tensor, positions: Tensor, window: int | None, config: Any
) -> Tensor | dict[str, Tensor]:
    """Returns the mask as a model takes it: one for all layers, or one for each type of layer that it has."""
    if window is None:
        return mask
    near = torch.arange(mask.shape[-1], device=mask.device) > (positions - window)[:, None, :, None]
    if "full_attention" in (getattr(config, "layer_types", None) or []):
        return {"full_attention": mask, "sliding_attention": mask & near}
    return mask & near
