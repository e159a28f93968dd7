from __future__ import annotations

import numpy as np
import pytest
import torch

from typst_lit.data.batching import (
    Collator,
    LengthGroupedSampler,
    PackedSampler,
    PackingCollator,
    best_fit_decreasing,
    split_batch,
)
from typst_lit.data.encoding import IGNORE_INDEX, Example

LENGTHS = np.random.default_rng(0).integers(50, 3000, 203)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_comes_once_per_epoch(world_size, shuffle) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        sampler = LengthGroupedSampler(LENGTHS, 4, seed=1, shuffle=shuffle, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(len(LENGTHS)))


def test_processes_without_examples_get_empty_batches() -> None:
    for rank in range(4):
        assert len(list(LengthGroupedSampler([5, 6], 4, rank=rank, world_size=4))) == 1


def grouped(epoch, **options) -> list[list[int]]:
    return list(LengthGroupedSampler(LENGTHS, 4, epoch=lambda: epoch, **options))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = grouped(3, seed=7)
    torch.manual_seed(2)
    assert grouped(3, seed=7) == first
    assert grouped(4, seed=7) != first
    assert grouped(3, seed=8) != first


def test_resuming_gives_exactly_the_remaining_batches() -> None:
    assert grouped(2, seed=7, start=(2, 11)) == grouped(2, seed=7)[11:]
    assert grouped(3, seed=7, start=(2, 11)) == grouped(3, seed=7)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_number_of_processes_resumes_after_any_number_of_batches(processes) -> None:
    batches = grouped(2, seed=7)
    for done in (1, 6, 11, len(batches) - 1):
        shares = [grouped(2, seed=7, rank=rank, world_size=processes, start=(2, done)) for rank in range(processes)]
        assert len({len(share) for share in shares}) == 1
        seen = [batch for step in zip(*shares, strict=True) for batch in step if batch]
        assert seen == batches[done:]


def test_batches_are_of_similar_length_and_the_longest_comes_first() -> None:
    batches = grouped(0, seed=7)
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    assert LENGTHS.sum() / padded > 0.9
    assert LENGTHS[batches[0]].max() == LENGTHS.max()


def test_padding_is_on_the_right_to_a_multiple_of_eight() -> None:
    examples = [
        Example([1] * 9, [IGNORE_INDEX] * 4 + [1] * 5, 4, "a"),
        Example([2] * 3, [IGNORE_INDEX] + [2] * 2, 1, "b"),
    ]
    batch = Collator(pad_id=2, max_length=100)(examples)
    assert batch.input_ids.shape == (2, 16)
    assert batch.labels[1].tolist() == [IGNORE_INDEX, 2, 2] + [IGNORE_INDEX] * 13  # the pad id is not what masks
    assert batch.lengths == [9, 3] and batch.prompt_lengths == [4, 1] and batch.origins == ["a", "b"]
    assert Collator(0, max_length=11)(examples).input_ids.shape == (2, 11)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_packed_rows_contain_every_example_once_and_fit(world_size, shuffle) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        sampler = PackedSampler(LENGTHS, 2, 4096, seed=1, shuffle=shuffle, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(LENGTHS[batch].sum() <= 2 * 4096 for batch in batches)
        seen += [index for batch in batches for index in batch]
    assert set(seen) == set(range(len(LENGTHS)))
    assert LENGTHS.sum() / (sampler.num_rows * 4096) > 0.97


def test_packed_rows_change_with_the_epoch_but_not_in_number() -> None:
    sampler = PackedSampler(LENGTHS, 2, 4096, seed=7, epoch=lambda: 2, start=(2, 5))
    epochs = [[batch.tolist() for batch in sampler.batches(epoch)] for epoch in range(4)]
    assert len({len(batches) for batches in epochs}) == 1 and epochs[1] != epochs[2]
    assert list(sampler) == epochs[2][5:]
    assert LENGTHS[epochs[0][0]].sum() == max(LENGTHS[batch].sum() for batch in epochs[0])


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    assert best_fit_decreasing([7, 6, 3, 2, 2, 1], 10) == [[0, 2], [1, 3, 4], [5]]
    assert best_fit_decreasing([5, 4, 4, 1], 9) == [[0, 1], [2, 3]]
    assert best_fit_decreasing([], 9) == []


@pytest.mark.parametrize("collate", [Collator(pad_id=2, max_length=100), PackingCollator()])
def test_an_empty_batch_has_no_targets(collate) -> None:
    batch = collate([])
    assert batch.lengths == [] and len(batch.target_positions) == 0 and (batch.labels == IGNORE_INDEX).all()
    assert split_batch(batch, 4)[0] is batch


def test_packing_puts_complete_examples_into_one_row() -> None:
    examples = [
        Example([1] * 9, [IGNORE_INDEX] * 4 + [1] * 5, 4, "a"),
        Example([2] * 3, [IGNORE_INDEX] + [2] * 2, 1, "b"),
    ]
    batch = PackingCollator()(examples)
    assert batch.input_ids.tolist() == [[1] * 9 + [2] * 3]
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 4 + [1] * 5 + [IGNORE_INDEX, 2, 2]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[*range(9), *range(3)]]
    assert batch.packed_sequences is not None
    assert batch.packed_sequences.offsets == [0, 9, 12] and batch.packed_sequences.max_seqlen == 9
    assert batch.lengths == [9, 3] and batch.origins == ["a", "b"]
