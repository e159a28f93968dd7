from __future__ import annotations

import numpy as np
import pytest
import torch

from typst_lit.data.batching import Collator, LengthGroupedSampler
from typst_lit.data.encoding import IGNORED, Example

LENGTHS = np.random.default_rng(0).integers(50, 3000, 203)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_comes_once_an_epoch(world_size, shuffle) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        sampler = LengthGroupedSampler(LENGTHS, 4, seed=1, shuffle=shuffle, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen += [index for batch in batches for index in batch]
    assert set(seen) == set(range(len(LENGTHS)))
    assert len(seen) - len(LENGTHS) < 4 * world_size


def test_a_few_examples_serve_many_processes() -> None:
    for rank in range(4):
        assert len(list(LengthGroupedSampler([5, 6], 4, rank=rank, world_size=4))) == 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = LengthGroupedSampler(LENGTHS, 4, seed=7).batches(3)
    torch.manual_seed(2)
    assert LengthGroupedSampler(LENGTHS, 4, seed=7).batches(3) == first
    assert LengthGroupedSampler(LENGTHS, 4, seed=7).batches(4) != first
    assert LengthGroupedSampler(LENGTHS, 4, seed=8).batches(3) != first


def test_resuming_gives_exactly_the_batches_that_were_to_come() -> None:
    whole = list(LengthGroupedSampler(LENGTHS, 4, seed=7, epoch=lambda: 2))
    rest = list(LengthGroupedSampler(LENGTHS, 4, seed=7, epoch=lambda: 2, start=(2, 11)))
    assert rest == whole[11:]
    following = list(LengthGroupedSampler(LENGTHS, 4, seed=7, epoch=lambda: 3, start=(2, 11)))
    assert following == LengthGroupedSampler(LENGTHS, 4, seed=7).batches(3)


def test_batches_are_of_similar_length_and_the_longest_comes_first() -> None:
    batches = LengthGroupedSampler(LENGTHS, 4, seed=7).batches(0)
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    assert LENGTHS.sum() / padded > 0.9
    assert LENGTHS[batches[0]].max() == LENGTHS.max()


def test_padding_is_on_the_right_to_a_multiple_of_eight() -> None:
    examples = [Example([1] * 9, [IGNORED] * 4 + [1] * 5, 4, "a"), Example([2] * 3, [IGNORED] + [2] * 2, 1, "b")]
    batch = Collator(pad_id=2, max_length=100)(examples)
    assert batch.input_ids.shape == (2, 16)
    assert batch.labels[1].tolist() == [IGNORED, 2, 2] + [IGNORED] * 13  # the pad id is not what masks
    assert batch.lengths == [9, 3] and batch.prompt_lengths == [4, 1] and batch.origins == ["a", "b"]
    assert Collator(0, max_length=11)(examples).input_ids.shape == (2, 11)
