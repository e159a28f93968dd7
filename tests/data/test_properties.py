"""Properties of encoding, packing, splitting and truncation that hold for every text and every length."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from typst_lit.data.batching import (
    LengthGroupedSampler,
    PackedSampler,
    PackingCollator,
    best_fit_decreasing,
    split_batch,
    target_positions,
)
from typst_lit.data.dataset import TokenizedDataset
from typst_lit.data.encoding import IGNORE_INDEX, Encoder, Example
from typst_lit.data.length_policy import LengthPolicy
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.splitting import split_by_group
from typst_lit.errors import UserError

quickly = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=80)


def make_record(text: str) -> dict[str, Any]:
    return {
        "starting_page": 3,
        "academic_year": "2025",
        "department": text[:9],
        "project_title": "T",
        "contents_txt": text,
    }


@quickly
@given(texts, texts)
def test_labels_are_the_completion_and_eos_and_never_the_prompt(tokenizer, text, completion) -> None:
    encoder = Encoder(tokenizer, ReportPrompt())
    encoded = encoder.encode([make_record(text)], [completion])
    ids, prompt_length = encoded["input_ids"][0], encoded["prompt_length"][0]
    example = Example.from_ids(ids, prompt_length)
    labels = [label for label in example.labels if label != IGNORE_INDEX]
    assert labels[-1] == tokenizer.eos_token_id and labels.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(labels[:-1], clean_up_tokenization_spaces=False) == completion
    assert all(label == IGNORE_INDEX for label in example.labels[:prompt_length])
    assert tokenizer.decode(ids[:prompt_length], clean_up_tokenization_spaces=False) == ReportPrompt().render(
        make_record(text)
    )


@quickly
@given(texts, texts, st.integers(5, 120))
def test_a_truncated_completion_keeps_its_start_and_never_teaches_eos(tokenizer, text, completion, max_length) -> None:
    encoder = Encoder(tokenizer, ReportPrompt())
    encoded = encoder.encode([make_record(text)], [completion])
    ids, prompt_length = encoded["input_ids"][0], encoded["prompt_length"][0]
    row = {"input_ids": [ids], "prompt_length": [prompt_length], "length": [len(ids)], "origin": ["here"]}
    table = Dataset.from_dict(row)
    policy = LengthPolicy(max_length, "truncate_completion")
    if prompt_length >= max_length:
        with pytest.raises(UserError, match="no train sample is left"):
            policy.apply("train", table, encoder)
        return
    (example,) = TokenizedDataset(policy.apply("train", table, encoder), completion_only_loss=True)
    assert list(example.input_ids) == ids[:max_length] and len(example.labels) == len(example.input_ids)
    assert (tokenizer.eos_token_id in example.labels) == (len(ids) <= max_length)


@quickly
@given(texts, st.integers(0, 300))
def test_a_truncated_record_fits_and_keeps_all_it_can(tokenizer, text, max_prompt_length) -> None:
    encoder = Encoder(tokenizer, ReportPrompt())
    prompt = encoder.prompts([make_record(text)])[0]
    truncated = encoder.truncate_body(make_record(text), 10, max_prompt_length + 10)
    shortest = len(encoder.prompts([{**make_record(text), "contents_txt": ""}])[0])
    if truncated is None:
        assert shortest > max_prompt_length
    else:
        assert len(truncated) <= max_prompt_length
        if len(prompt) <= max_prompt_length:
            assert truncated == prompt


lengths = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@quickly
@given(lengths, st.integers(100, 300), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_packing_has_every_sample_once_and_splits_none(sizes, capacity, batch_size, world_size, seed) -> None:
    rows = best_fit_decreasing(sorted(sizes, reverse=True), capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    descending = sorted(sizes, reverse=True)
    assert all(sum(descending[index] for index in row) <= capacity for row in rows)
    assert len(rows) <= 1.7 * -(-sum(sizes) // capacity) + 1  # best fit's own bound
    seen: list[int] = []
    for rank in range(world_size):
        sampler = PackedSampler(sizes, batch_size, capacity, seed=seed, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(sum(sizes[index] for index in batch) <= batch_size * capacity for batch in batches)
        seen += [index for batch in batches for index in batch]
    assert set(seen) == set(range(len(sizes)))
    if world_size == 1:
        assert len(seen) == len(sizes)


@quickly
@given(lengths, st.integers(1, 5), st.integers(0, 99))
def test_a_packed_batch_contains_each_token_and_its_target(sizes, num_splits, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number, size in enumerate(sizes):
        ids = torch.randint(1, 500, (size,), generator=generator).tolist()
        prompt = size // 3
        examples.append(Example(ids, [IGNORE_INDEX] * prompt + ids[prompt:], prompt, f"record {number}"))
    batch = PackingCollator()(examples)
    assert batch.input_ids.numel() == sum(sizes)  # no slot is wasted
    assert batch.input_ids[0].tolist() == [token for example in examples for token in example.input_ids]
    assert batch.packed_sequences is not None and batch.position_ids is not None
    assert batch.target_positions is not None
    for (start, end), example in zip(pairwise(batch.packed_sequences.offsets), examples, strict=True):
        assert batch.input_ids[0, start:end].tolist() == list(example.input_ids)
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))
        assert int(batch.labels[0, start]) == IGNORE_INDEX  # nothing of another document predicts it
    targets = batch.labels.flatten()[batch.target_positions + 1].tolist()
    assert targets == [label for example in examples for label in example.labels[1:] if label != IGNORE_INDEX]
    pieces = split_batch(batch, num_splits)
    assert torch.cat([piece.input_ids for piece in pieces], 1).equal(batch.input_ids)
    assert sum(len(target_positions(piece.labels)) for piece in pieces) == len(targets)


@quickly
@given(lengths, st.integers(1, 8), st.integers(0, 5), st.integers(0, 99))
def test_resuming_within_an_epoch_sees_the_rest_and_nothing_twice(sizes, batch_size, done, seed) -> None:
    batches = list(LengthGroupedSampler(sizes, batch_size, seed=seed))
    done = min(done, len(batches))
    rest = list(LengthGroupedSampler(sizes, batch_size, seed=seed, start=(0, done)))
    assert batches[done:] == rest
    assert sorted(index for batch in batches[:done] + rest for index in batch) == list(range(len(sizes)))


@quickly
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0.01, 0.9), st.integers(0, 99))
def test_no_group_is_on_both_sides(groups, fraction, seed) -> None:
    assume(len(set(groups)) > 1)
    train, held = split_by_group(groups, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(groups)))
    assert not {groups[index] for index in train} & {groups[index] for index in held}
    assert len(held) and len(train)
    again = split_by_group(groups, fraction, seed)
    assert np.array_equal(train, again[0]) and np.array_equal(held, again[1])
