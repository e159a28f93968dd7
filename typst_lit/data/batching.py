"""Which examples share a batch, in which order, and the tensors that leave the loader."""

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

POOL_BATCHES = 32  # how many batches are sorted by length together: larger wastes less padding and shuffles less


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
    """TokenizedDataset padded on the right to a common length, or packed one after the other into one row.

    There is no attention mask: in a causal model no real token can see the padding that follows it, and what the
    padding sees is never looked at. Without a mask the attention kernels skip the upper half of the scores.

    Attributes:
        input_ids: (B, T) ids.
        labels: (B, T) ids to learn, `IGNORE_INDEX` elsewhere; not shifted.
        lengths: real tokens of each example.
        prompt_lengths: how many of them are the prompt's.
        origins: where each record stood, for messages.
        position_ids: (1, T) places that begin anew with each packed example; None when they are not packed.
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
    """Returns the places (N) in labels (B, T), laid out flat, whose next token is to be predicted."""
    ahead = torch.zeros_like(labels, dtype=torch.bool)
    ahead[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return ahead.flatten().nonzero()[:, 0]


def split_batch(batch: Batch, num_splits: int) -> list[Batch]:
    """Returns a batch's examples in so many batches, or as many as it has examples, in order."""
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
    """Returns a batch of no example, for a process that has none left while others do: there is nothing to predict.

    It still passes the model, for the processes wait for each other in the backward pass.
    """
    ids = torch.zeros(1, 8, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    return Batch(ids, labels, [], [], [], target_positions=target_positions(labels))


class PromptBatch(NamedTuple):
    """Records to generate for: indices into the data set and the ids of their prompts, not padded."""

    indices: list[int]
    prompts: list[list[int]]


class Collator:
    """Pads examples to the longest, rounded up to a multiple of 8 (the width that matrix kernels like).

    Args:
        pad_id: the id to fill with. It is never looked at: masks go by length, so the end token may serve.
        max_length: the length that rounding up may not pass.
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
    """Puts examples one after the other into one row, without padding."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        if not examples:
            return empty_batch()
        lengths = [len(example.input_ids) for example in examples]
        offsets = [0, *np.cumsum(lengths).tolist()]
        # The first label of each is nobody's to predict: what stands before it is another document.
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
    """Batches in an order that is a function of seed and epoch alone; a subclass says which examples share one.

    Nothing global is drawn from, so a run that is resumed sees the very batches that were still to come. The very
    first batch of a run holds the longest examples: what does not fit into memory fails at once, not after hours.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples, or packed rows, a batch and process.
        seed: decides the order.
        shuffle: False orders the examples by length, the longest first, for evaluation.
        rank: which of the ``world_size`` processes this is; each takes every ``world_size``-th batch.
        world_size: number of processes. All have equally many batches: where the last don't come out even, some are
            empty.
        epoch: tells the epoch whenever an iteration starts.
        start: epoch, and number of batches of all processes in it that are done already.
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
        """Number of batches of all processes together, the same in every epoch."""

    @abstractmethod
    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        """Returns the batches as arrays of indices; ``order`` (N,) is a random one, or longest first without chance."""

    @abstractmethod
    def width(self, batch: np.ndarray) -> int:
        """Returns how much memory a batch takes, as a number to compare by."""

    def __len__(self) -> int:
        return -(-self.num_batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = max(self.epoch(), self.start[0])
        done = self.start[1] if epoch == self.start[0] else 0
        mine = range(self.rank, len(self) * self.world_size, self.world_size)
        batches = self.batches(epoch)
        # Another number of processes may have done a part of the batches that these would do together: then it is
        # nothing for some.
        for place in mine[done // self.world_size :]:
            yield batches[place].tolist() if done <= place < len(batches) else []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Returns the batches of all processes, arrays of indices, in the order of the epoch."""
        if not self.shuffle:
            return self.grouped(np.argsort(-self.lengths, kind="stable"), None)
        generator = np.random.default_rng([self.seed, epoch])
        batches = self.grouped(generator.permutation(len(self.lengths)), generator)
        batches = [batches[place] for place in generator.permutation(len(batches))]
        if epoch == 0:
            widest = max(range(len(batches)), key=lambda place: self.width(batches[place]))
            batches[0], batches[widest] = batches[widest], batches[0]
        return batches


class LengthGroupedSampler(DeterministicBatchSampler):
    """Batches of examples of similar length, so that little is padded."""

    @property
    def num_batches(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        batches = []
        pool = POOL_BATCHES * self.batch_size
        for at in range(0, len(order), pool):
            part = order[at : at + pool]
            if generator:
                part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += np.array_split(part, range(self.batch_size, len(part), self.batch_size))
        return batches

    def width(self, batch: np.ndarray) -> int:
        return int(self.lengths[batch].max())


class PackedSampler(DeterministicBatchSampler):
    """Batches of ``batch_size`` rows of at most ``capacity`` tokens, each filled with whole examples by best fit.

    Which lengths share a row is the same in every epoch; which examples of these lengths, chance decides.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, capacity: int, **options: Any) -> None:
        super().__init__(lengths, batch_size, **options)
        self.capacity = capacity
        self.row_count = len(best_fit_decreasing(np.sort(self.lengths)[::-1].tolist(), capacity))

    @property
    def num_batches(self) -> int:
        return -(-self.row_count // self.batch_size)

    def grouped(self, order: np.ndarray, generator: np.random.Generator | None) -> list[np.ndarray]:
        falling = order[np.argsort(-self.lengths[order], kind="stable")]
        rows = [falling[row] for row in best_fit_decreasing(self.lengths[falling].tolist(), self.capacity)]
        if generator:  # the rows of the longest examples come first, and shall not share their batches
            rows = [rows[place] for place in generator.permutation(len(rows))]
        return [np.concatenate(rows[at : at + self.batch_size]) for at in range(0, len(rows), self.batch_size)]

    def width(self, batch: np.ndarray) -> int:
        return int(self.lengths[batch].sum())


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into rows, each into the fullest one that still has room (best fit).

    Args:
        lengths: of the items, the longest first, none above the capacity.
        capacity: of a row.

    Returns:
        The places of the items of each row.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # rows by the room they have left
    rooms: list[int] = []  # the keys of it, rising
    for place, length in enumerate(lengths):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        rows[row].append(place)
        left = room - length
        if left:
            if left not in open_rows:
                insort(rooms, left)
            open_rows.setdefault(left, []).append(row)
    return rows
