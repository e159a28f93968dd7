from __future__ import annotations

import numpy as np
import pytest
import torch

from typst_lit.data.batching import Collator, LengthGroupedSampler, PackedSampler, PackingCollator, best_fit
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


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_packed_rows_hold_every_example_once_and_no_more_than_fits(world_size, shuffle) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        sampler = PackedSampler(LENGTHS, 2, 4096, seed=1, shuffle=shuffle, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(LENGTHS[batch].sum() <= 2 * 4096 for batch in batches)
        seen += [index for batch in batches for index in batch]
    assert set(seen) == set(range(len(LENGTHS)))
    assert LENGTHS.sum() / (sampler.row_count * 4096) > 0.97


def test_packed_rows_change_with_the_epoch_but_not_their_number() -> None:
    sampler = PackedSampler(LENGTHS, 2, 4096, seed=7, epoch=lambda: 2, start=(2, 5))
    epochs = [sampler.batches(epoch) for epoch in range(4)]
    assert len({len(batches) for batches in epochs}) == 1 and epochs[1] != epochs[2]
    assert list(sampler) == epochs[2][5:]
    assert LENGTHS[epochs[0][0]].sum() == max(LENGTHS[batch].sum() for batch in epochs[0])


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    assert best_fit([7, 6, 3, 2, 2, 1], 10) == [[0, 2], [1, 3, 4], [5]]
    assert best_fit([5, 4, 4, 1], 9) == [[0, 1], [2, 3]]
    assert best_fit([], 9) == []


def test_packing_puts_whole_examples_in_one_row() -> None:
    examples = [Example([1] * 9, [IGNORED] * 4 + [1] * 5, 4, "a"), Example([2] * 3, [IGNORED] + [2] * 2, 1, "b")]
    batch = PackingCollator()(examples)
    assert batch.input_ids.tolist() == [[1] * 9 + [2] * 3]
    assert batch.labels.tolist() == [[IGNORED] * 4 + [1] * 5 + [IGNORED, 2, 2]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[*range(9), *range(3)]]
    assert batch.documents is not None and batch.documents.ends == [0, 9, 12] and batch.documents.longest == 9
    assert batch.lengths == [9, 3] and batch.origins == ["a", "b"]
