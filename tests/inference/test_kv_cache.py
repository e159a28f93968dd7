"""The KV cache: rows that join, leave and are truncated hold what a cache of only the tokens kept holds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from typst_lit.inference.constraints import OutputConstraint
from typst_lit.inference.decoder import Decoder
from typst_lit.inference.kv_cache import RaggedCache
from typst_lit.inference.request import Request
from typst_lit.inference.settings import GenerationSettings

PROMPTS = [[5, 9, 11, 5, 9], list(range(20, 70)), [7] * 9 + [8], [6]]


@pytest.fixture(scope="module")
def model(tiny_model) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def new_cache(model: Any, num_rows: int) -> RaggedCache:
    return RaggedCache(model.config.num_hidden_layers, model.device, num_rows)


def feed(model: Any, cache: RaggedCache, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Feeds as many tokens to each row; returns their logits, (rows, count, V)."""
    mask = cache.allocate(len(tokens[0]))
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor(tokens), attention_mask=mask, position_ids=cache.positions, past_key_values=cache
        )
    return output.logits


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_join_leave_and_are_truncated_equal_fresh_ones(model, seed) -> None:
    rng = random.Random(seed)
    cache, texts = new_cache(model, 0), []
    for _ in range(60):
        action = rng.choice(["admit", "feed", "feed", "truncate", "restore", "remove"])
        row = rng.randrange(len(texts)) if texts else -1
        if action == "admit" or not texts:
            added = [new_cache(model, 1) for _ in range(rng.choice([1, 2]))]
            new = [[rng.randrange(512) for _ in range(rng.choice([0, 1, 30, 300]))] for _ in added]
            for part, text in zip(added, new, strict=True):
                if text:
                    feed(model, part, [text])
            texts += new
            cache.admit(added)
        elif action == "feed":
            new = [[rng.randrange(512) for _ in range(3)] for _ in texts]
            feed(model, cache, new)
            texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
        elif action == "truncate":
            length = rng.randint(0, len(texts[row]))
            cache.truncate(row, length)
            del texts[row][length:]
        elif action == "restore":
            snapshots = [cache.snapshot(index) for index in range(len(texts))]
            feed(model, cache, [[1, 2]] * len(texts))
            for index, snapshot in enumerate(snapshots):
                cache.restore(index, snapshot)
        elif action == "remove":
            cache.remove([row])
            del texts[row]
        assert cache.lengths == [len(text) for text in texts]
    assert len({len(text) for text in texts}) > 1
    found = feed(model, cache, [[3, 4]] * len(texts))
    for logits, text in zip(found, texts, strict=True):
        expected = feed(model, new_cache(model, 1), [[*text, 3, 4]])[0, -2:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_row_can_be_truncated_to_what_it_has_only(model) -> None:
    cache = new_cache(model, 1)
    feed(model, cache, [[1, 2, 3]])
    for length in (-1, 4):
        with pytest.raises(ValueError, match=f"3 tokens can't be truncated to {length}"):
            cache.truncate(0, length)


def test_rows_remain_usable_when_others_can_not_be_admitted(model) -> None:
    cache, unusable = new_cache(model, 1), new_cache(model, 1)
    feed(model, cache, [[1, 2, 3]])
    feed(model, unusable, [[4, 5]])
    last = unusable.layers[-1]
    last.keys = last.keys[..., :1]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        cache.admit([unusable])
    expected = feed(model, new_cache(model, 1), [[1, 2, 3, 6]])[:, -1:]
    torch.testing.assert_close(feed(model, cache, [[6]]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "repetition_penalty": 1},
        {"temperature": 1, "repetition_penalty": 1.3},
        {"temperature": 1, "prompt_lookup": False},
    ],
)
def test_a_truncated_document_is_decoded_again_as_from_scratch(model, tokenizer, options) -> None:
    settings = GenerationSettings(max_tokens=30, **options)
    constraint = OutputConstraint(tokenizer)

    def decode(truncations: dict[int, list[int]]) -> list[Request]:
        requests = [Request(prompt, settings, [1, index]) for index, prompt in enumerate(PROMPTS)]
        decoder = Decoder(model, [tokenizer.eos_token_id], constraint=constraint)
        decoder.add(requests)
        step = 0
        while decoder.requests:
            decoder.step()
            for row in truncations.get(step, []):
                request = requests[row]
                if request.finish_reason is None:
                    decoder.truncate(request, request.num_generated * row // len(requests))
            step += 1
        return requests

    expected, found = decode({}), decode({3: [0, 1], 5: [2, 3], 6: [1]})
    assert [request.output for request in found] == [request.output for request in expected]
    states = [[request.tracker.states for request in requests] for requests in (found, expected)]
    assert states[0] == states[1]
    assert sum(request.passes for request in found) > sum(request.passes for request in expected)
