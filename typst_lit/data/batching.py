"""Which examples share a batch, in which order, and the tensors that leave the loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from typst_lit.data.encoding import IGNORED, Example

POOL_BATCHES = 32  # how many batches are sorted by length together: larger wastes less padding and shuffles less


class Batch(NamedTuple):
    """Examples padded on the right to a common length.

    There is no attention mask: in a causal model no real token can see the padding that follows it, and what the
    padding sees is never looked at. Without a mask the attention kernels skip the upper half of the scores.

    Attributes:
        input_ids: (B, T) ids.
        labels: (B, T) ids to learn, `IGNORED` elsewhere; not shifted.
        lengths: real tokens of each example.
        prompt_lengths: how many of them are the prompt's.
        origins: where each record stood, for messages.
    """

    input_ids: Tensor
    labels: Tensor
    lengths: list[int]
    prompt_lengths: list[int]
    origins: list[str]


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
        lengths = [len(example.input_ids) for example in examples]
        width = max(max(lengths), min(-(-max(lengths) // 8) * 8, self.max_length))
        shape = (len(examples), width)
        input_ids = torch.full(shape, self.pad_id, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            input_ids[row, :length] = torch.tensor(example.input_ids)
            labels[row, :length] = torch.tensor(example.labels)
        prompt_lengths = [example.prompt_length for example in examples]
        return Batch(input_ids, labels, lengths, prompt_lengths, [example.origin for example in examples])


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of similar length in an order that is a function of seed and epoch alone.

    Nothing global is drawn from, so a run that is resumed sees the very batches that were still to come. The very
    first batch of a run holds the longest examples: what does not fit into memory fails at once, not after hours.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples a batch and process.
        seed: decides the order.
        shuffle: False orders the examples by length, the longest first, for evaluation.
        rank: which of the ``world_size`` processes this is; each takes every ``world_size``-th batch.
        world_size: number of processes. The first batches are repeated where the last don't come out even; in
            evaluation these count twice.
        epoch: tells the epoch whenever an iteration starts.
        start: epoch and number of batches in it that are done already.
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

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        epoch = max(self.epoch(), self.start[0])
        skip = self.start[1] if epoch == self.start[0] else 0
        yield from self.batches(epoch)[skip:]

    def batches(self, epoch: int) -> list[list[int]]:
        """Returns this process's batches of indices in the order of the epoch."""
        count = len(self.lengths)
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            batches = np.array_split(order, range(self.batch_size, count, self.batch_size))
        else:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(count)
            pool = POOL_BATCHES * self.batch_size
            batches = []
            for at in range(0, count, pool):
                part = order[at : at + pool]
                part = part[np.argsort(self.lengths[part], kind="stable")]
                batches += np.array_split(part, range(self.batch_size, len(part), self.batch_size))
            batches = [batches[place] for place in generator.permutation(len(batches))]
            if epoch == 0:
                longest = max(range(len(batches)), key=lambda place: self.lengths[batches[place]].max())
                batches[0], batches[longest] = batches[longest], batches[0]
        whole = len(self) * self.world_size
        return [batches[place % len(batches)].tolist() for place in range(self.rank, whole, self.world_size)]
