"""KV caches: what a decoder keeps of the tokens that it has fed to a model, so that it need not feed them again."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK_TOKENS = 256  # a cache grows by multiples of this


class KVCache(Cache, ABC):
    """A cache of rows, one per document, that have different lengths, join and leave, and can be truncated.

    Row i holds the state after `lengths[i]` tokens. Each row begins at position 0: there is no padding before, in or
    between its tokens. A forward pass feeds the same number of tokens to each row: `allocate` first, then the model
    with `positions` and this cache, then `truncate` for the rows that keep fewer.

    Args:
        layers: as transformers' `Cache` has them.
        num_rows: rows, of no tokens.
    """

    def __init__(self, layers: list[Any], num_rows: int = 1) -> None:
        super().__init__(layers=layers)
        self.lengths = [0] * num_rows
        self.positions = torch.empty(0)  # (rows, count), those that the next forward pass writes

    @abstractmethod
    def allocate(self, count: int) -> Tensor:
        """Extends each row by the positions of the next `count` tokens, which the next forward pass writes.

        Returns:
            The attention mask, (rows, 1, count, max(lengths)), true where a token may attend.
        """

    @abstractmethod
    def admit(self, others: Sequence[KVCache]) -> None:
        """Adds the rows of other caches, which must not be used any longer, after those that are there."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""

    @abstractmethod
    def truncate(self, row: int, length: int) -> None:
        """Drops the tokens of a row after its first `length` ones."""

    @abstractmethod
    def snapshot(self, row: int) -> Any:
        """Returns what `restore` needs to bring a row back to its present state. It stays valid for the same document
        when rows join and leave, until the row is truncated to less."""

    @abstractmethod
    def restore(self, row: int, snapshot: Any) -> None:
        """Brings a row back to the state that it had at a snapshot."""

    def remove(self, rows: Collection[int]) -> None:
        """Drops these rows."""
        self.select([row for row in range(len(self.lengths)) if row not in rows])


class RaggedCacheLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, positions, head size); a row uses as many positions as it is long."""

    keys: Any  # Tensor once something was written
    values: Any

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        # A reference cycle would leave the tensors to the garbage collector, which counts objects and not bytes: a run
        # over hundreds of records held 90 MB per finished document.
        self._cache = weakref.proxy(cache)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values to the positions that the cache allocated; returns those of all used positions."""
        positions, length = self._cache.positions, self._cache.num_positions
        if self.keys is None:
            self.adopt(*(x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states)))
        self.reserve(length)
        if len(positions) == 1:  # one row's positions are consecutive, and a slice is faster
            start = length - positions.shape[1]
            self.keys[:, :, start:length], self.values[:, :, start:length] = key_states, value_states
        else:
            rows = torch.arange(len(positions), device=positions.device)[:, None]
            self.keys[rows, :, positions] = key_states.transpose(1, 2)
            self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self.keys[:, :, :length], self.values[:, :, :length]

    def adopt(self, keys: Tensor, values: Tensor) -> None:
        """Takes keys and values of all rows in place of its own."""
        self.is_initialized = True
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values

    def concatenate(self, parts: Sequence[tuple[RaggedCacheLayer, int]]) -> None:
        """Takes the rows of layers, each given with its number of rows, and frees the memory of the other layers."""
        known = [layer for layer, _ in parts if layer.keys is not None]
        if not known:  # all rows are empty
            self.keys = self.values = None
            return
        for layer, num_rows in parts:
            if layer.keys is None:
                shapes = ((num_rows, x.shape[1], 0, x.shape[3]) for x in (known[0].keys, known[0].values))
                layer.adopt(*(known[0].keys.new_zeros(shape) for shape in shapes))
        if len(parts) > 1:
            length = max(layer.keys.shape[2] for layer, _ in parts)
            for layer, _ in parts:
                layer.reserve(length)
            joined = [torch.cat([getattr(layer, name) for layer, _ in parts]) for name in ("keys", "values")]
        else:
            joined = [known[0].keys, known[0].values]
        for layer, _ in parts:
            layer.keys = layer.values = None
        self.adopt(*joined)

    def reserve(self, length: int) -> None:
        """Allocates memory for this many positions, if there are fewer."""
        missing = length - self.keys.shape[2]
        if missing > 0:
            # Zeros, not arbitrary memory: a masked position's value still takes part, times 0.
            padding = (0, 0, 0, -(-missing // BLOCK_TOKENS) * BLOCK_TOKENS)
            self.keys, self.values = (torch.nn.functional.pad(x, padding) for x in (self.keys, self.values))


class RaggedCache(KVCache):
    """The keys and values of all tokens, in tensors that grow.

    Tokens are dropped by overwriting them: the attention mask hides everything after a token's own position. So a
    snapshot is a length.

    Args:
        num_layers: layers of the model.
        device: the model's.
        num_rows: rows, of no tokens.
    """

    layers: list[RaggedCacheLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int, device: torch.device, num_rows: int = 1) -> None:
        super().__init__([RaggedCacheLayer(self) for _ in range(num_layers)], num_rows)
        self.device = device

    @property
    def num_positions(self) -> int:
        """Positions that the longest row uses."""
        return max(self.lengths)

    def allocate(self, count: int) -> Tensor:
        starts = torch.tensor(self.lengths, device=self.device)
        self.positions = starts[:, None] + torch.arange(count, device=self.device)
        self.lengths = [length + count for length in self.lengths]
        return (torch.arange(self.num_positions, device=self.device) <= self.positions[..., None])[:, None]

    def admit(self, others: Sequence[KVCache]) -> None:
        num_rows = len(self.lengths)
        parts: list[Any] = [cache for cache in (self, *others) if cache.lengths]
        try:
            for index, layer in enumerate(self.layers):
                layer.concatenate([(part.layers[index], len(part.lengths)) for part in parts])
        except Exception:  # memory may run out; the rows that were there remain usable
            for layer in self.layers:
                if layer.keys is not None:
                    layer.keys, layer.values = layer.keys[:num_rows], layer.values[:num_rows]
            raise
        self.lengths = [length for part in parts for length in part.lengths]

    def select(self, rows: Sequence[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            if layer.keys is not None:
                indices = torch.tensor(rows, dtype=torch.int64, device=self.device)
                layer.keys, layer.values = layer.keys.index_select(0, indices), layer.values.index_select(0, indices)

    def truncate(self, row: int, length: int) -> None:
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"a row of {self.lengths[row]} tokens can't be truncated to {length}.")
        self.lengths[row] = length

    def snapshot(self, row: int) -> int:
        return self.lengths[row]

    def restore(self, row: int, snapshot: int) -> None:
        self.truncate(row, snapshot)
