"""Batches: which examples share one, in which order they come, and their tensors."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from typst_lit.data.encoding import IGNORE_INDEX, Example

POOL_BATCHES = 32  # batches whose examples are sorted by length together: more of them pad less and shuffle less


class PackedSequences(NamedTuple):
    """Where the sequences of a packed row are.

    Attributes:
        offsets: 0, and the end of each sequence: (N + 1,) positions.
        cu_seqlens: the same as an int32 tensor on the row's device, for kernels of variable length.
        max_seqlen: tokens of the longest sequence.
    """

    offsets: list[int]
    cu_seqlens: Tensor
    max_seqlen: int


class Batch(NamedTuple):
    """Examples padded on the right to a common length, or packed one after the other into one row.

    There is no attention mask: in a causal model, no token can see the padding that follows it, and the outputs of the
    padding are not used. Without a mask, attention kernels skip the upper half of the scores.

    Attributes:
        input_ids: (B, T) ids.
        labels: (B, T) ids to learn, `IGNORE_INDEX` elsewhere; not shifted.
        lengths: tokens of each example, without padding.
        prompt_lengths: tokens of each prompt.
        origins: where each record comes from, for messages.
        position_ids: (1, T) positions that start at 0 in each packed example; None when they are not packed.
        packed_sequences: where the packed examples are; None when they are not packed.
        target_positions: `target_positions` of the labels.
    """

    input_ids: Tensor
    labels: Tensor
    lengths: list[int]
    prompt_lengths: list[int]
    origins: list[str]
    position_ids: Tensor | None = None
    packed_sequences: PackedSequences | None = None
    target_positions: Tensor | None = None


def target_positions(labels: Tensor) -> Tensor:
    """Returns the positions (N,) in the flattened labels (B, T) whose next token is to be predicted.

    >>> target_positions(torch.tensor([[-100, -100, 7, 2], [-100, 5, 2, -100]]))
    tensor([1, 2, 4, 5])
    """
    has_target = torch.zeros_like(labels, dtype=torch.bool)
    has_target[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return has_target.flatten().nonzero()[:, 0]


def split_batch(batch: Batch, num_splits: int) -> list[Batch]:
    """Returns the examples of a batch in several batches of about the same number of tokens, in order.

    Args:
        batch: padded or packed examples.
        num_splits: number of batches; with fewer examples, each is a batch.
    """
    if num_splits == 1 or not batch.lengths:
        return [batch]
    count = len(batch.lengths)
    offsets = batch.packed_sequences.offsets if batch.packed_sequences else list(range(count + 1))
    cuts = [offsets[-1] * part / num_splits for part in range(num_splits + 1)]
    boundaries = sorted({int(np.abs(np.array(offsets) - cut).argmin()) for cut in cuts})
    parts = []
    for first, last in pairwise(boundaries):
        lists = batch.lengths[first:last], batch.prompt_lengths[first:last], batch.origins[first:last]
        if batch.packed_sequences is None:
            width = min(-(-max(lists[0]) // 8) * 8, batch.input_ids.shape[1])
            parts.append(Batch(batch.input_ids[first:last, :width], batch.labels[first:last, :width], *lists))
            continue
        assert batch.position_ids is not None
        columns = slice(offsets[first], offsets[last])
        packed_sequences = PackedSequences(
            [offset - offsets[first] for offset in offsets[first : last + 1]],
            batch.packed_sequences.cu_seqlens[first : last + 1] - offsets[first],
            max(lists[0]),
        )
        ids, labels, positions = (tensor[:, columns] for tensor in (batch.input_ids, batch.labels, batch.position_ids))
        parts.append(Batch(ids, labels, *lists, positions, packed_sequences))
    return parts


def empty_batch() -> Batch:
    """Returns a batch without examples and targets, for a process that has none left while others do.

    It still passes through the model, because the processes wait for each other in the backward pass.
    """
    ids = torch.zeros(1, 8, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    return Batch(ids, labels, [], [], [], target_positions=target_positions(labels))


class RecordBatch(NamedTuple):
    """Records to generate documents for.

    Attributes:
        indices: of the records in the data set.
        records: their fields.
        origins: where they come from.
    """

    indices: list[int]
    records: list[dict[str, Any]]
    origins: list[str]


class Collator:
    """Pads examples to the longest, rounded up to a multiple of 8, with which matrix kernels are fastest.

    Args:
        pad_id: the id of the padding. It may be that of EOS, because labels are masked by length.
        max_length: the limit of rounding up.

    >>> from typst_lit.data.encoding import Example
    >>> batch = Collator(pad_id=0, max_length=64)([Example.from_ids([5, 6, 7, 2], 2), Example.from_ids([5, 2], 1)])
    >>> batch.input_ids.shape, batch.lengths
    (torch.Size([2, 8]), [4, 2])
    """

    def __init__(self, pad_id: int, max_length: int) -> None:
        self.pad_id = pad_id
        self.max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> Batch:
        if not examples:
            return empty_batch()
        lengths = [len(example.input_ids) for example in examples]
        width = max(max(lengths), min(-(-max(lengths) // 8) * 8, self.max_length))
        shape = (len(examples), width)
        input_ids = torch.full(shape, self.pad_id, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            input_ids[row, :length] = torch.tensor(example.input_ids)
            labels[row, :length] = torch.tensor(example.labels)
        prompt_lengths = [example.prompt_length for example in examples]
        origins = [example.origin for example in examples]
        return Batch(input_ids, labels, lengths, prompt_lengths, origins, target_positions=target_positions(labels))


class PackingCollator:
    """Puts examples one after the other into one row, without padding.

    >>> from typst_lit.data.encoding import Example
    >>> batch = PackingCollator()([Example.from_ids([5, 6, 7, 2], 2), Example.from_ids([5, 2], 1)])
    >>> batch.input_ids.tolist(), batch.packed_sequences.offsets
    ([[5, 6, 7, 2, 5, 2]], [0, 4, 6])
    """

    def __call__(self, examples: Sequence[Example]) -> Batch:
        if not examples:
            return empty_batch()
        lengths = [len(example.input_ids) for example in examples]
        offsets = [0, *np.cumsum(lengths).tolist()]
        # Nothing predicts the first label of an example: the token before it is another example's.
        labels = torch.tensor([[label for example in examples for label in (IGNORE_INDEX, *example.labels[1:])]])
        return Batch(
            torch.tensor([[token for example in examples for token in example.input_ids]]),
            labels,
            lengths,
            [example.prompt_length for example in examples],
            [example.origin for example in examples],
            torch.cat([torch.arange(length) for length in lengths])[None],
            PackedSequences(offsets, torch.tensor(offsets, dtype=torch.int32), max(lengths)),
            target_positions(labels),
        )


class DeterministicBatchSampler(Sampler[list[int]]):
    """Batches in an order that depends on seed and epoch alone; subclasses decide which examples share a batch.

    No global random generator is used, so that a resumed run sees exactly the remaining batches. The first batch of a
    run has the longest examples: if they don't fit into memory, the run fails in its first step, not after hours.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples, or packed rows, per batch and process.
        seed: decides the order.
        shuffle: False orders the examples by length, the longest first, for evaluation.
        rank: index of this process; each takes every ``world_size``-th batch.
        world_size: number of processes. All get the same number of batches, of which the last may be empty.
        epoch: returns the current epoch; called when an iteration starts.
        start: an epoch, and the number of its batches, of all processes together, that are done already.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        epoch: Callable[[], int] = lambda: 0,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self.start = start

    @property
    @abstractmethod
    def num_batches(self) -> int:
        """Batches of all processes together, the same number in every epoch."""

    @abstractmethod
    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        """Returns the batches as arrays of indices.

        Args:
            order: (N,) the indices of the examples: in random order, or the longest first without a generator.
            generator: for random decisions of the subclass; None to make none.
        """

    @abstractmethod
    def width(self, batch: np.ndarray) -> int:
        """Returns a number that grows with the memory that a batch takes."""

    def __len__(self) -> int:
        return -(-self.num_batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = max(self.epoch(), self.start[0])
        num_done = self.start[1] if epoch == self.start[0] else 0
        own_indices = range(self.rank, len(self) * self.world_size, self.world_size)
        batches = self.batches(epoch)
        # A run of another world size may have done some of the batches that these processes would do in one step. The
        # processes that would do them get empty batches.
        for index in own_indices[num_done // self.world_size :]:
            yield batches[index].tolist() if num_done <= index < len(batches) else []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Returns the batches of all processes, arrays of indices, in the order of the epoch."""
        if not self.shuffle:
            return self.grouped(np.argsort(-self.lengths, kind="stable"), None)
        generator = np.random.default_rng([self.seed, epoch])
        batches = self.grouped(generator.permutation(len(self.lengths)), generator)
        batches = [batches[index] for index in generator.permutation(len(batches))]
        if epoch == 0:
            widest = max(range(len(batches)), key=lambda index: self.width(batches[index]))
            batches[0], batches[widest] = batches[widest], batches[0]
        return batches


class LengthGroupedSampler(DeterministicBatchSampler):
    """Batches of examples of similar length, so that there is little padding.

    >>> sampler = LengthGroupedSampler([30, 10, 31, 11, 29, 12], batch_size=3)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2, 4], [1, 3, 5]]
    """

    @property
    def num_batches(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        batches = []
        pool = POOL_BATCHES * self.batch_size
        for first in range(0, len(order), pool):
            indices = order[first : first + pool]
            if generator:
                indices = indices[np.argsort(self.lengths[indices], kind="stable")]
            batches += np.array_split(indices, range(self.batch_size, len(indices), self.batch_size))
        return batches

    def width(self, batch: np.ndarray) -> int:
        return int(self.lengths[batch].max())


class PackedSampler(DeterministicBatchSampler):
    """Batches of ``batch_size`` rows of at most ``capacity`` tokens, filled with complete examples by best fit.

    The same lengths share a row in every epoch; which examples of these lengths do is random.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: rows per batch and process.
        capacity: the maximum number of tokens per row.
        options: the other arguments of `DeterministicBatchSampler`.

    >>> sampler = PackedSampler([30, 10, 60, 40, 20, 40], batch_size=1, capacity=100)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 1, 4, 5], [2, 3]]
    >>> sampler.summary()
    '6 samples in 2 rows of 100 tokens, 100.0 % full.'
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, capacity: int, **options: Any) -> None:
        super().__init__(lengths, batch_size, **options)
        self.capacity = capacity
        self.num_rows = len(best_fit_decreasing(np.sort(self.lengths)[::-1].tolist(), capacity))

    @property
    def num_batches(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def summary(self) -> str:
        """Returns how many rows there are, and how full they are."""
        share = self.lengths.sum() / (self.num_rows * self.capacity)
        return (
            f"{len(self.lengths)} samples in {self.num_rows} rows of {self.capacity} tokens, {100 * share:.1f} % full."
        )

    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        descending = order[np.argsort(-self.lengths[order], kind="stable")]
        rows = [descending[row] for row in best_fit_decreasing(self.lengths[descending].tolist(), self.capacity)]
        if generator:  # best fit returns the rows of the longest examples first, which must not share batches
            rows = [rows[index] for index in generator.permutation(len(rows))]
        return [np.concatenate(rows[first : first + self.batch_size]) for first in range(0, len(rows), self.batch_size)]

    def width(self, batch: np.ndarray) -> int:
        return int(self.lengths[batch].sum())


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into rows, each into the fullest row that still has room (best fit).

    Args:
        lengths: of the items, the longest first, none above the capacity.
        capacity: of a row.

    Returns:
        The indices of the items of each row.

    >>> best_fit_decreasing([7, 6, 3, 2, 2, 1], 10)
    [[0, 2], [1, 3, 4], [5]]
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # rows by the capacity that is left in them
    capacities_left: list[int] = []  # its keys, ascending
    for item, length in enumerate(lengths):
        index = bisect_left(capacities_left, length)
        if index == len(capacities_left):
            rows.append([])
            row, capacity_left = len(rows) - 1, capacity
        else:
            capacity_left = capacities_left[index]
            row = open_rows[capacity_left].pop()
            if not open_rows[capacity_left]:
                del open_rows[capacity_left], capacities_left[index]
        rows[row].append(item)
        capacity_left -= length
        if capacity_left:
            if capacity_left not in open_rows:
                insort(capacities_left, capacity_left)
            open_rows.setdefault(capacity_left, []).append(row)
    return rows
