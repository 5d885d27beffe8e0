"""Codes of 4 or 8 bits in bytes and in words of 32 bits, the first code in the lowest bits; plain torch, any device."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
"""Bits of a word."""


def packed_bytes(stored: Tensor, bits: int) -> Tensor:
    """[..., E] uint8 -> [..., ceil(E*b/8)] uint8."""
    if bits == 8:
        return stored.contiguous()
    even = torch.nn.functional.pad(stored, (0, stored.shape[-1] % 2))
    return even[..., ::2] | even[..., 1::2] << 4


def unpacked_bytes(packed: Tensor, bits: int) -> Tensor:
    """[..., B] uint8 -> [..., B*8/b] uint8."""
    return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def packed_words(stored: Tensor, bits: int) -> Tensor:
    """[R, E] uint8 -> [R, ceil(E*b/32)] int32, padded with zeros."""
    packed = packed_bytes(torch.nn.functional.pad(stored, (0, -stored.shape[1] % (WORD // bits))), bits)
    return packed.flatten().view(torch.int32).view(len(packed), -1)


def unpacked_words(words: Tensor, bits: int, count: int, name: str) -> Tensor:
    """[R, ceil(E*b/32)] int32 -> [R, E = count] uint8. ValueError if the padding is not 0."""
    stored = unpacked_bytes(words.contiguous().view(torch.uint8), bits)
    if stored[:, count:].any():
        raise ValueError(f"{name} has bits in the padding beyond {count}")
    return stored[:, :count].contiguous()
