"""Sampling with extreme settings and extreme scores: always valid token ids, never NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from typst_lit.errors import UserError
from typst_lit.inference.sampling import INVALID_TOKEN, UNIFORM_BLOCK_SIZE, Sampler, choose_tokens, top_candidates
from typst_lit.inference.settings import GenerationSettings

VOCABULARY = 40
# Every order of magnitude, subnormal numbers included
TINY = st.floats(min_value=5e-324, max_value=1.0, allow_subnormal=True) | st.integers(1, 323).map(lambda e: 10.0**-e)
SETTINGS = st.builds(
    GenerationSettings,
    max_tokens=st.integers(1, 10**30),
    temperature=st.just(0.0) | TINY | st.floats(0, 2),
    top_p=TINY,
    top_k=st.integers(0, 10**30) | st.integers(0, VOCABULARY + 1),
    repetition_penalty=st.floats(1, 2),
    seed=st.integers(0, 10**40),
)
SCALES = st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4, 1e30, 1e38])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def choose(sampler: Sampler, logits: torch.Tensor, draft: Sequence[int]) -> list[int]:
    (tokens,) = choose_tokens(logits[None], [sampler], [draft])
    return tokens


@settings(max_examples=300, deadline=None)
@given(SETTINGS, SCALES, DTYPES, st.integers(0, 2**32))
@example(GenerationSettings(temperature=1e-40, top_k=0), 30.0, torch.float32, 0)
@example(GenerationSettings(temperature=1.0, top_p=1e-320), 30.0, torch.float32, 0)
@example(GenerationSettings(temperature=1e-320, top_p=1e-320, repetition_penalty=2), 1e38, torch.bfloat16, 0)
def test_any_accepted_settings_choose_valid_tokens(sampling, scale, dtype, seed) -> None:
    logits = (torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    logits = logits.clamp(-1e38, 1e38)
    sampler = Sampler(sampling, [seed])
    for _ in range(3):
        tokens = choose(sampler, logits, draft=[1, 2])
        assert len(tokens) == 3 and all(0 <= token < VOCABULARY for token in tokens)
        sampler.accept(tokens[:1])
    if not sampling.is_greedy:
        candidates, probabilities = top_candidates(logits, sampling.temperature, sampling.top_k, sampling.top_p)
        assert probabilities.isfinite().all() and candidates.max() < VOCABULARY
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


@settings(max_examples=100, deadline=None)
@given(st.builds(dict, temperature=st.floats(), top_p=st.floats(), repetition_penalty=st.floats()))
def test_values_out_of_range_are_refused_and_named(values) -> None:
    in_range = {
        "temperature": 0 <= values["temperature"] <= 2,
        "top_p": 0 < values["top_p"] <= 1,
        "repetition_penalty": 1 <= values["repetition_penalty"] <= 2,
    }
    if all(in_range.values()):
        GenerationSettings(**values)
        return
    with pytest.raises(UserError) as error:
        GenerationSettings(**values)
    assert error.value.setting in [f"generation.{name}" for name, is_valid in in_range.items() if not is_valid]


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-37, 1e-40, 5e-324])
def test_temperatures_near_zero_are_greedy(temperature) -> None:
    logits = torch.randn(5, VOCABULARY)
    sampler = Sampler(GenerationSettings(temperature=temperature, repetition_penalty=1), 0)
    assert choose(sampler, logits, [1, 2, 3, 4]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [1e-6, 1e-44, 1e-46, 1e-320])
def test_a_tiny_top_p_is_greedy(top_p) -> None:
    logits = torch.randn(5, VOCABULARY)
    sampler = Sampler(GenerationSettings(temperature=2, top_p=top_p, top_k=0, repetition_penalty=1), 0)
    assert choose(sampler, logits, [1, 2, 3, 4]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0, "repetition_penalty": 1}, {"temperature": 0}, {"temperature": 1}]
)
def test_scores_that_are_not_finite_give_no_token(value, sampling) -> None:
    logits = torch.randn(3, VOCABULARY)
    logits[1] = value
    tokens = choose(Sampler(GenerationSettings(**sampling), 0), logits, [1, 2])
    assert tokens[1] == INVALID_TOKEN and min(tokens[0], tokens[2]) >= 0


def test_random_numbers_depend_on_the_position_only() -> None:
    numbers = np.random.default_rng([7]).random(3 * UNIFORM_BLOCK_SIZE)
    sampler = Sampler(GenerationSettings(max_tokens=10**15), [7])
    for position in (0, 1, UNIFORM_BLOCK_SIZE - 2, 2 * UNIFORM_BLOCK_SIZE + 5):
        sampler.truncate(0)
        sampler.accept([0] * position)
        assert (sampler.uniform(4) == numbers[position : position + 4]).all()


def test_the_repetition_penalty_spares_copied_tokens() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.9, 1.0]]).repeat(2, 1)
    settings = GenerationSettings(temperature=0, repetition_penalty=1.5)
    for copied, after_draft in (((), 2), ([1, 3], 1)):
        sampler = Sampler(settings, 0, copied)
        assert choose(sampler, logits, [1]) == [1, after_draft]
        assert sampler.choose_allowed(logits[0], [1], lambda _: True) == after_draft
        sampler.accept([1])
        assert choose(sampler, logits[:1], []) == [after_draft]


ROWS = st.lists(
    st.tuples(SETTINGS, st.lists(st.integers(0, VOCABULARY - 1), max_size=5), st.lists(st.integers(0, 9), max_size=4)),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(ROWS, SCALES, DTYPES, st.integers(0, 2**32), st.booleans())
def test_the_tokens_of_a_document_depend_neither_on_its_batch_nor_on_its_draft(rows, scale, dtype, seed, equal) -> None:
    """Each document's own settings, draft and earlier tokens; every token as it is chosen alone and without a draft."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(rows), 6, VOCABULARY, generator=generator) * scale).clamp(-1e38, 1e38).to(dtype)
    copied = range(seed % VOCABULARY)
    samplers = [
        Sampler(rows[0][0] if equal else sampling, [seed, row], copied) for row, (sampling, _, _) in enumerate(rows)
    ]
    drafts = [draft for _, draft, _ in rows]
    for sampler, (_, _, earlier) in zip(samplers, rows, strict=True):
        sampler.accept(earlier)
    together = choose_tokens(logits, samplers, drafts)
    for row, (sampler, draft) in enumerate(zip(samplers, drafts, strict=True)):
        alone = []
        for position in range(len(draft) + 1):
            alone += choose(sampler, logits[row, position][None], [])
            sampler.accept(draft[position : position + 1])
        assert together[row] == alone


@settings(max_examples=100, deadline=None)
@given(SETTINGS, st.lists(st.integers(0, VOCABULARY - 1), max_size=20), st.integers(0, 20), st.integers(0, 2**32))
def test_a_truncated_sampler_chooses_as_one_that_accepted_only_what_was_kept(sampling, tokens, kept, seed) -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    truncated, fresh = Sampler(sampling, [seed]), Sampler(sampling, [seed])
    truncated.accept(tokens)
    choose(truncated, logits, [3, 4])
    truncated.truncate(kept)
    fresh.accept(tokens[:kept])
    assert choose(truncated, logits, [1, 2]) == choose(fresh, logits, [1, 2])
    after = [sampler.choose_allowed(logits[0], [], lambda token: token % 2 == 1) for sampler in (truncated, fresh)]
    assert after[0] == after[1]
