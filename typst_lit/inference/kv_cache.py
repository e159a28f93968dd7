"""A ragged KV cache: the keys and values of sequences that have different lengths."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK_TOKENS = 256  # a cache grows by multiples of this


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
        """Writes new keys and values to the positions that the cache has set; returns those of all used positions."""
        positions, length = self._cache.positions, self._cache.length
        if self.keys is None:
            self.is_initialized = True
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.reserve(length)
        if len(positions) == 1:  # one row's positions are consecutive, and a slice is faster
            start = length - positions.shape[1]
            self.keys[:, :, start:length], self.values[:, :, start:length] = key_states, value_states
        else:
            rows = torch.arange(len(positions), device=positions.device)[:, None]
            self.keys[rows, :, positions] = key_states.transpose(1, 2)
            self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self.keys[:, :, :length], self.values[:, :, :length]

    def reserve(self, length: int) -> None:
        """Allocates memory for this many positions, if there are fewer."""
        missing = length - self.keys.shape[2]
        if missing > 0:
            # Zeros, not arbitrary memory: a masked position's value still takes part, times 0.
            padding = (0, 0, 0, -(-missing // BLOCK_TOKENS) * BLOCK_TOKENS)
            self.keys, self.values = (torch.nn.functional.pad(x, padding) for x in (self.keys, self.values))


class RaggedCache(Cache):
    """A KV cache whose rows all begin at position 0: there is no padding before, in or between their tokens.

    A row's last tokens can be dropped by overwriting them: the attention mask that `set_positions` returns hides
    everything after a token's own position.

    Args:
        num_layers: layers of the model.
    """

    layers: list[RaggedCacheLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedCacheLayer(self) for _ in range(num_layers)])
        self.positions = torch.empty(0)
        self.length = 0

    def set_positions(self, starts: Sequence[int], count: int, device: torch.device) -> Tensor:
        """Sets the positions at which the next `count` tokens of each row are written.

        Returns:
            (rows, 1, count, positions), true where a token may attend.
        """
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
        self.length = max(starts) + count
        return (torch.arange(self.length, device=device) <= self.positions[..., None])[:, None]

    def select(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        for layer in self.layers:
            indices = torch.tensor(rows, device=layer.keys.device)
            layer.keys, layer.values = layer.keys.index_select(0, indices), layer.values.index_select(0, indices)

    @classmethod
    def concatenate(cls, caches: Sequence[RaggedCache]) -> RaggedCache:
        """Returns one cache with the rows of all, in order."""
        if len(caches) == 1:
            return caches[0]
        joined = cls(len(caches[0].layers))
        for index, layer in enumerate(joined.layers):
            parts = [cache.layers[index] for cache in caches]
            for part in parts:
                part.reserve(max(p.keys.shape[2] for p in parts))
            layer.is_initialized = True
            layer.dtype, layer.device = parts[0].dtype, parts[0].device
            layer.keys, layer.values = (torch.cat([getattr(p, x) for p in parts]) for x in ("keys", "values"))
        return joined
