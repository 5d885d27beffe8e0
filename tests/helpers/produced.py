"""Inputs of producers, and their codes against the slow twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers.reference import RELU2, SAME, SILU, SUM, Producer
from tests.helpers.matrices import raw
from tests.twins import producers as twin
from tests.twins import quantize as quantize_twin
from tests.twins import slide as slide_twin

NORM, ADD_NORM = Producer(SAME, 1e-5), Producer(SUM, 1e-6)
GATE, GATE_RELU2, GATE_NORM = Producer(SILU), Producer(RELU2), Producer(RELU2, 1e-5)
PRODUCERS = (Producer(SAME), NORM, ADD_NORM, GATE, GATE_RELU2, GATE_NORM)
"""Quantization alone; what Llama and Qwen have; what BitNet has."""
E4M3 = np.array([quantize_twin.e4m3_value(byte) for byte in range(256)])
SIZES = (1.0, 40.0, 0.0, 1e-3, 3.0)
"""Of the rows, in turns."""


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    other: Tensor | None
    weight: Tensor | None


def inputs(producer: Producer, tokens: int, columns: int, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Random rows of several sizes, zeros among them. The same for the same numbers."""
    random = torch.Generator().manual_seed(tokens * columns)
    largest = 4.0 if dtype == torch.float16 else max(SIZES)  # its squares times another must be finite
    size = torch.tensor(SIZES)[torch.arange(tokens) % len(SIZES), None].clamp(max=largest)
    x, other = (torch.randn(tokens, columns, generator=random) * size for _ in range(2))
    weight = 1 + torch.randn(columns, generator=random) / 4

    def made(tensor: Tensor, wanted: bool) -> Tensor | None:
        return tensor.to(dtype).to(device) if wanted else None

    found = made(x, wanted=True)
    assert found is not None
    return Inputs(found, made(other, producer.element != SAME), made(weight, producer.eps is not None))


def check(producer: Producer, given: Inputs, operand: Operand, found: tuple[Tensor, Tensor, Tensor | None]) -> int:
    """Compare codes of the operand, scale [M, 1] and sum with the twins; rows that must be the same to the bit.

    Rows in which no rounding is in doubt have the twins' bytes; the others are off by at most a step of the
    activations' dtype where it is, and half a step of the codes everywhere.
    """
    codes, scale, total = (None if part is None else part.cpu() for part in found)
    assert codes is not None and scale is not None
    dtype, kind = given.x.dtype, str(given.x.dtype).removeprefix("torch.")
    expected = _expected(producer, given, total)
    tokens, scheme = len(given.x), "int8" if operand.dtype == torch.int8 else "fp8"
    index, codes = np.array(_index(operand)), _by_token(codes, operand)
    assert codes.shape[1] == len(index)
    assert operand.interleaved or not raw(codes)[tokens:].any()  # those of no token are read by none
    wanted, wanted_scale = quantize_twin.quantize(expected.value.astype(np.float32), scheme)
    lifted = np.where(index >= 0, _decoded(wanted, scheme)[:, index], 0)
    exact = ~expected.unsure.any(1) & ((dtype != torch.float32) | (producer == Producer(SAME)))
    got, got_scale = _decoded(raw(codes)[:tokens], scheme), scale.numpy()[:, 0]
    assert np.array_equal(got_scale[exact], wanted_scale[exact]), "scales"
    # A quotient within the rounding of float32 of a tie may go either way where a division is not the GPU's.
    assert np.array_equal(got[exact], lifted[exact]), "codes"
    values = np.where(index >= 0, expected.value[:, index], 0)
    doubt = np.where(index >= 0, expected.unsure[:, index], False) * 2 * twin.step(values, kind)
    slack = doubt + np.abs(values) * 2**-17 + _half_step(values, got_scale[:, None], scheme)
    assert (np.abs(got * got_scale[:, None] - values) <= slack).all(), "codes in doubt"
    return int(exact.sum())


def check_values(producer: Producer, given: Inputs, found: Tensor, total: Tensor | None) -> None:
    """Compare values [M, K] with the twins: off by two steps of their dtype where a rounding is in doubt, and float32
    by its own errors. What is smaller than numbers are on a GPU may be zero: an exponential may be infinite."""
    kind = str(given.x.dtype).removeprefix("torch.")
    expected = _expected(producer, given, None if total is None else total.cpu())
    assert found.dtype == given.x.dtype and found.shape == given.x.shape
    own = kind == "float32" and producer != Producer(SAME)
    slack = expected.unsure * 2 * twin.step(expected.value, kind) + own * np.abs(expected.value) * 2**-16 + 2.0**-110
    assert (np.abs(found.double().cpu().numpy() - expected.value) <= slack).all()


def _expected(producer: Producer, given: Inputs, total: Tensor | None) -> twin.Values:
    """The twins' values; and the sum must be theirs."""
    dtype = given.x.dtype
    x = given.x.double().cpu().numpy()
    other = np.zeros_like(x) if given.other is None else given.other.double().cpu().numpy()
    weight = np.ones(x.shape[1]) if given.weight is None else given.weight.double().cpu().numpy()
    kind = str(dtype).removeprefix("torch.")
    expected = twin.values(producer.element, producer.eps, x, other, weight, kind)
    assert (total is not None) == (producer.element == SUM)
    assert total is None or (total.dtype == dtype and np.array_equal(total.double().numpy(), expected.total))
    return expected


def _by_token(codes: Tensor, operand: Operand) -> Tensor:
    """Piece by piece of a token: 16 codes of each row of pieces."""
    if not operand.interleaved:
        return codes
    assert codes.shape == (operand.width // 16, 16 * operand.interleaved)
    return torch.stack(
        [codes.view(torch.int8)[:, 16 * token : 16 * token + 16].reshape(-1) for token in range(operand.interleaved)]
    ).view(codes.dtype)


def _index(operand: Operand) -> list[int]:
    found = list(range(operand.columns))
    if operand.lifted:
        found = slide_twin.lift_index(operand.length, operand.columns)
    found += [-1] * (-len(found) % operand.multiple)
    if operand.blocks == 1:
        return found
    windows = (operand.length or 4) // 2 - 1 if operand.lifted else 4
    starts = range(0, len(found), 4 * windows * operand.blocks)
    places = [
        (start, window, block) for start in starts for window in range(windows) for block in range(operand.blocks)
    ]
    return [
        found[start + 4 * (block * windows + window) + lane] for start, window, block in places for lane in range(4)
    ]


def _decoded(codes: NDArray[Any], scheme: str) -> NDArray[np.float64]:
    """What codes stand for; a negative zero is a zero."""
    return codes.astype(np.float64) if scheme == "int8" else E4M3[codes.view(np.uint8)]


def _half_step(values: NDArray[Any], scale: NDArray[Any], scheme: str) -> NDArray[Any]:
    """Half the distance of the codes around a value, times the scale; a little more, for quotients near ties."""
    if scheme == "int8":
        return scale * (0.5 + 2**-10)
    exponent = np.maximum(np.frexp(values / scale * (1 + 2**-6))[1] - 1, -6)
    return np.ldexp(scale, exponent - 4) * (1 + 2**-10)
