"""The number formats of GGUF as their formulas, block by block (ggml-common.h of https://github.com/ggml-org/ggml)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy


def q8_0(block: bytes) -> list[float]:
    """2 bytes of scale, 32 signed bytes: scale × code."""
    scale = half(block)
    return [scale * code for code in struct.unpack("<32b", block[2:])]


def q4_0(block: bytes) -> list[float]:
    """2 bytes of scale, 16 bytes of codes; low nibbles are the first 16 weights: scale × (code - 8)."""
    scale = half(block)
    return [scale * (code - 8) for code in nibbles(block[2:])]


def q4_1(block: bytes) -> list[float]:
    """2 bytes of scale, 2 of minimum, 16 of codes: scale × code + minimum."""
    scale, minimum = half(block), half(block[2:])
    return [scale * code + minimum for code in nibbles(block[4:])]


def q4_k(block: bytes) -> list[float]:
    """256 weights in 8 groups of 32: 2 bytes of scale, 2 of minimum, 12 of 6-bit scales and minima, 128 of codes."""
    scale, minimum, packed, codes = half(block), half(block[2:]), block[4:16], block[16:]
    out = []
    for group in range(8):
        if group < 4:
            own, least = packed[group] & 63, packed[group + 4] & 63
        else:
            own = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            least = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for code in codes[group // 2 * 32 : group // 2 * 32 + 32]:
            out.append(scale * own * (code >> 4 if group % 2 else code & 15) - minimum * least)
    return out


def q6_k(block: bytes) -> list[float]:
    """256 weights in 16 groups: 128 bytes of low nibbles, 64 of high bits, 16 signed scales, 2 bytes of scale."""
    low, high, scales, scale = block[:128], block[128:192], struct.unpack("<16b", block[192:208]), half(block[208:])
    out = []
    for place in range(256):
        part, quarter, lane = place // 128, place % 128 // 32, place % 32
        byte = low[part * 64 + (quarter % 2) * 32 + lane]
        code = (byte >> 4 if quarter > 1 else byte & 15) | (high[part * 32 + lane] >> 2 * quarter & 3) << 4
        out.append(scale * scales[place // 16] * (code - 32))
    return out


BLOCKS: dict[str, tuple[int, Callable[[bytes], list[float]]]] = {
    "Q8_0": (34, q8_0),
    "Q4_0": (18, q4_0),
    "Q4_1": (20, q4_1),
    "Q4_K": (144, q4_k),
    "Q6_K": (210, q6_k),
}
"""Bytes of a block and its formula."""
FLOATS = {"F32": "<f4", "F16": "<f2"}


def half(data: bytes) -> float:
    """The number of 16 bits at the start of `data`."""
    return float(struct.unpack("<e", data[:2])[0])


def nibbles(data: bytes) -> list[int]:
    """The low halves of all bytes, then the high ones."""
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def weights(data: bytes, kind: str) -> numpy.ndarray:
    """The weights that the bytes of a tensor stand for, float64, flattened."""
    if kind in FLOATS:
        return numpy.frombuffer(data, FLOATS[kind]).astype(numpy.float64)
    if kind == "BF16":
        wide = numpy.frombuffer(data, "<u2").astype(numpy.uint32) << 16
        return wide.view(numpy.float32).astype(numpy.float64)
    size, formula = BLOCKS[kind]
    return numpy.array(
        [weight for start in range(0, len(data), size) for weight in formula(data[start : start + size])]
    )


def for_llama_cpp(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """The rows of a q_proj or k_proj [heads × d, …] in llama.cpp's order: those of the first and the second half of a
    head alternate, since its rotary embedding turns neighbours."""
    half_head = len(weight) // heads // 2
    order = [
        head * 2 * half_head + lane + side * half_head
        for head in range(heads)
        for lane in range(half_head)
        for side in (0, 1)
    ]
    return weight[order]
