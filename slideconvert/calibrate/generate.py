"""Calibration text that the dense model generates itself, for training on more text than there is.

Training soon knows a hundred sequences by heart. What a model generates is distributed like the text that it was
trained on, and the dense model's predictions, towards which the pruned model is trained, are as valid there (LLM-QAT,
arXiv 2305.17888, section 3.1). Each sequence continues some tokens of a calibration sequence, so that it keeps to the
subjects of the user's text; tokens are drawn from the whole distribution, not only from the most probable ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..core.captured import Captured
from ..core.precision import running
from ..plan.calibration import GENERATED_AT_ONCE
from ..progress import Progress, silent

START = 16
"""Tokens of a calibration sequence that a generated sequence continues, at most a quarter of its own."""


def generate(
    model: Any, tokens: Tensor, count: int, seed: int, dtype: torch.dtype, progress: Progress = silent
) -> Tensor:
    """`count` sequences [count, length] int64 on the CPU, each the continuation of START tokens at a random place of a
    calibration sequence; all of these are continued equally often, up to one.

    model: a causal language model of transformers, which computes in `dtype`. tokens [sequences, length] int64: the
    calibration sequences. Each rank makes its share of the sequences. seed: of the places and of the tokens drawn;
    results depend on the device only through rounding.
    """
    device, length = next(model.parameters()).device, tokens.shape[1]
    source = torch.Generator().manual_seed(seed)
    start = max(1, min(START, length // 4))
    places = torch.randint(0, length - start + 1, (count, 1), generator=source)
    rows = torch.arange(count) % len(tokens)
    begun = tokens[rows[:, None], places + torch.arange(start)]
    chances = torch.rand(count, length - start, generator=source)
    at_once, made = max(1, GENERATED_AT_ONCE[device.type] // length), [begun.new_empty(0, length)]
    own, _ = ranks.share(torch.arange(count))
    for first in range(0, len(own), at_once):
        part, done = own[first : first + at_once], first * (length - start)

        def count_tokens(new: int, done: int = done) -> None:
            progress("generate", done + new, len(own) * (length - start))

        with torch.inference_mode(), running(device, dtype):
            made.append(_continued(model, begun[part].to(device), chances[part].to(device), count_tokens).cpu())
    return ranks.whole(torch.cat(made), count)


def _continued(model: Any, begun: Tensor, chances: Tensor, count: Callable[[int], None]) -> Tensor:
    """begun [n, start] int64, chances [n, T] in [0, 1) -> [n, start + T]: each next token is the first one whose
    cumulative probability exceeds its chance. count: called with the number of new tokens so far."""
    (sequences, start), device = begun.shape, begun.device
    whole = start + chances.shape[1]
    out = torch.cat([begun, begun.new_zeros(sequences, whole - start)], 1)
    cache, fixed = _cache(model, device, whole)
    places = torch.arange(whole, device=device)
    place, now = places[start : start + 1].clone(), begun[:, -1:].clone()

    def add(tokens: Tensor, at: Tensor, chance: Tensor) -> None:
        """Read tokens [n, t] at places [t], draw the next one, and put it into `out` and `now`."""
        words: dict[str, Tensor] = {"position_ids": at[None].expand(sequences, -1)}
        if fixed:  # the cache has places that are not known yet
            unknown = torch.zeros(len(at), whole, dtype=model.dtype, device=device)
            unknown.masked_fill_(places > at[:, None], -torch.inf)
            words["attention_mask"] = unknown.expand(sequences, 1, -1, -1)
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **words).logits
        sums = logits[:, -1].double().softmax(-1).cumsum(-1)
        # The last sum may be rounded to less than the chance.
        now.copy_(torch.searchsorted(sums, chance[:, None].double(), right=True).clamp(max=sums.shape[1] - 1))
        out.index_copy_(1, at[-1:] + 1, now)

    def add_one(chance: Tensor) -> None:
        add(now, place, chance)
        place.add_(1)

    count(0)
    add(begun, places[:start], chances[:, 0])
    count(sequences)
    step = Captured(add_one) if fixed else add_one
    for number in range(1, chances.shape[1]):
        step(chances[:, number])
        count((number + 1) * sequences)
    return out


def _cache(model: Any, device: torch.device, tokens: int) -> tuple[Any, bool]:
    """A cache for keys and values of so many tokens, and whether its size is fixed, so that a GPU can run steps as a
    CUDA graph. Elsewhere it grows, which saves attention to places that are not known yet."""
    from transformers.cache_utils import DynamicCache

    from .fixed_cache import fixed_cache

    fixed = fixed_cache(model.config, tokens) if device.type == "cuda" else None
    return (DynamicCache(config=model.config), False) if fixed is None else (fixed, True)
