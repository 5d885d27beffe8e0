"""A cache of keys and values whose size is fixed, as a CUDA graph needs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer


class _Layer(StaticLayer):
    """One layer's. Keys get the dtype of values: rotary embeddings make them float32 in a model that runs in bfloat16,
    and attention rounds them again."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **words: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = super().update(key_states.to(value_states.dtype), value_states, *args, **words)
        return found


def fixed_cache(config: Any, tokens: int) -> Any:
    """For so many tokens of a model of transformers; None for one with layers whose attention has a window, or of other
    kinds: these need more than a mask of the known tokens."""
    cache = StaticCache(config=config, max_cache_len=tokens)
    if not all(type(layer) is StaticLayer for layer in cache.layers):
        return None
    cache.layers = [_Layer(max_cache_len=tokens) for _ in cache.layers]
    return cache
