"""Keys and values of sequences decoded together: tokens are written in place, ended sequences are removed."""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

_LEAST_ROOM = 64
"""Fewest columns by which storage grows; a long cache grows by half, so that a token is copied three times at most."""


class DecodingCache(Protocol):
    """What decoding needs of a cache of transformers besides storing keys and values."""

    def select_rows(self, rows: Tensor) -> None:
        """Keeps these rows (int64 indices, any number of times each) in this order."""

    def move_rows(self, source: Tensor, target: Tensor, count: int) -> None:
        """Writes rows `source` over rows `target`, all among the first `count`, and keeps only those."""

    def drop_columns(self, first: int) -> int:
        """Drops the columns before `first`, counted from the first ever; returns the first one that is left."""


def decoding_cache(model: PreTrainedModel, max_new_tokens: int) -> DecodingCache:
    """An empty cache for prompts and then at most `max_new_tokens` tokens.

    Layers of plain attention get storage with room for further tokens, and so do those with a sliding window, whose
    mask leaves out older columns. If a layer keeps anything else (a recurrent state, values shared between layers),
    transformers' own cache is used, which copies everything for every token.
    """
    growing = _GrowingCache(config=model.config)
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in growing.layers):
        return _RowCache([_RowLayer(max_new_tokens) for _ in growing.layers])
    return growing


class _RowLayer(CacheLayerMixin):
    """Storage `[rows, heads, columns, D]`: the first rows are in use, and of their columns those in [first, end)."""

    keys: Tensor
    values: Tensor

    def __init__(self, max_new_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_new_tokens = max_new_tokens
        self.rows = self.first = self.end = self.limit = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the keys and values of the prompts without a copy."""
        self.keys, self.values = key_states, value_states
        self.rows, self.end = len(key_states), key_states.shape[-2]
        self.limit = self.end + self.max_new_tokens
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds keys and values `[rows, heads, new, D]`; returns those of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        end = self.end + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.store(torch.arange(self.rows, device=self.keys.device))
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored[: self.rows, :, self.end : end] = new
        self.end = end
        return self.keys[: self.rows, :, self.first : end], self.values[: self.rows, :, self.first : end]

    def get_seq_length(self) -> int:
        """The number of columns in use."""
        return self.end - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of columns that the next queries see, and the number of columns before those."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def store(self, rows: Tensor) -> None:
        """Copies rows, in that order, to new storage with room for further tokens."""
        columns = min(self.end + max(_LEAST_ROOM, self.end // 2), self.limit)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], columns, old.shape[3])
            new[:, :, self.first : self.end] = old[rows, :, self.first : self.end]
            setattr(self, name, new)
        self.rows = len(rows)

    def move(self, source: Tensor, target: Tensor, count: int) -> None:
        """See `DecodingCache.move_rows`."""
        used = slice(self.first, self.end)
        for states in (self.keys, self.values):
            states[target, :, used] = states[source, :, used]
        self.rows = count


class _RowCache(Cache):
    def __init__(self, layers: list[_RowLayer]) -> None:
        super().__init__(layers=cast(Any, layers))
        self.row_layers = layers

    def select_rows(self, rows: Tensor) -> None:
        for layer in self.row_layers:
            layer.store(rows)

    def move_rows(self, source: Tensor, target: Tensor, count: int) -> None:
        for layer in self.row_layers:
            layer.move(source, target, count)

    def drop_columns(self, first: int) -> int:
        for layer in self.row_layers:
            layer.first = first
        return first


class _GrowingCache(DynamicCache):
    def select_rows(self, rows: Tensor) -> None:
        self.reorder_cache(cast(Any, rows))

    def move_rows(self, source: Tensor, target: Tensor, count: int) -> None:
        self.select_rows(torch.arange(count, device=target.device).index_copy(0, target, source))

    def drop_columns(self, first: int) -> int:
        return 0
