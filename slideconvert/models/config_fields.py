"""The fields of config.json that every conversion uses: their types, and how large they may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError

MOST = {
    "num_hidden_layers": 1000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 28,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
"""Whole numbers from 1 on, far beyond any model: sizes that somebody made up would take all memory and all day."""
NEEDED = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads")
"""Fields without which transformers takes those of another model."""


def check_fields(config: Mapping[str, Any]) -> None:
    """InputError for a field that is missing, has another type, or is absurdly large."""
    for field, most in MOST.items():
        value = config.get(field)
        if value is None and field not in NEEDED:
            continue
        if value is None:
            raise InputError(f"config.json has no {field}", hint="take config.json from the model's repository again")
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(
                f"config.json has {field} = {str(value)[:40]!s}, a whole number from 1 to {most} was expected",
                hint="it must be a positive integer: take config.json from the model's repository again",
            )
    tied = config.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise InputError(
            f"config.json has tie_word_embeddings = {str(tied)[:40]}, true or false was expected",
            hint="take config.json from the model's repository again",
        )
