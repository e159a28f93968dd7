"""The keys and values of rows that have different lengths."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 256  # places that a cache grows by


class RaggedCacheLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, places, width), of which a row uses as many places as it is long."""

    keys: Any  # Tensor once something was written
    values: Any

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        # A reference in a circle would leave the tensors to the garbage collector, which counts objects and not bytes:
        # a run over hundreds of records held 90 MB a finished document.
        self._cache = weakref.proxy(cache)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values to the places that the cache has set; returns those of all places in use."""
        places, extent = self._cache.places, self._cache.extent
        if self.keys is None:
            self.is_initialized = True
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states))
        self.widen(extent)
        if len(places) == 1:  # one row's places follow each other, and a slice is faster
            start = extent - places.shape[1]
            self.keys[:, :, start:extent], self.values[:, :, start:extent] = key_states, value_states
        else:
            rows = torch.arange(len(places), device=places.device)[:, None]
            self.keys[rows, :, places] = key_states.transpose(1, 2)
            self.values[rows, :, places] = value_states.transpose(1, 2)
        return self.keys[:, :, :extent], self.values[:, :, :extent]

    def widen(self, extent: int) -> None:
        """Makes room for so many places."""
        missing = extent - self.keys.shape[2]
        if missing > 0:
            # Zeros, not anything: a masked place's value still takes part, times 0.
            more = (0, 0, 0, -(-missing // BLOCK) * BLOCK)
            self.keys, self.values = (torch.nn.functional.pad(x, more) for x in (self.keys, self.values))


class RaggedCache(Cache):
    """A cache of rows, each beginning at place 0: no padding stands before, in or between their tokens.

    What a row has written can be forgotten by writing over it: the attention mask of `place` hides all that comes after
    a token's own place.
    """

    layers: list[RaggedCacheLayer]  # type: ignore[assignment]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[RaggedCacheLayer(self) for _ in range(layers)])
        self.places = torch.empty(0)
        self.extent = 0

    def place(self, starts: Sequence[int], count: int, device: torch.device) -> Tensor:
        """Sets where the next `count` tokens of each row go.

        Returns:
            (rows, 1, count, places), true where a token may look.
        """
        begins = torch.tensor(starts, device=device)
        self.places = begins[:, None] + torch.arange(count, device=device)
        self.extent = max(starts) + count
        return (torch.arange(self.extent, device=device) <= self.places[..., None])[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        for layer in self.layers:
            kept = torch.tensor(rows, device=layer.keys.device)
            layer.keys, layer.values = layer.keys.index_select(0, kept), layer.values.index_select(0, kept)

    @classmethod
    def join(cls, caches: Sequence[RaggedCache]) -> RaggedCache:
        """Returns one cache with the rows of all, in order."""
        if len(caches) == 1:
            return caches[0]
        joined = cls(len(caches[0].layers))
        for number, layer in enumerate(joined.layers):
            parts = [cache.layers[number] for cache in caches]
            for part in parts:
                part.widen(max(p.keys.shape[2] for p in parts))
            layer.is_initialized = True
            layer.dtype, layer.device = parts[0].dtype, parts[0].device
            layer.keys, layer.values = (torch.cat([getattr(p, x) for p in parts]) for x in ("keys", "values"))
        return joined
