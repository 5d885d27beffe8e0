"""Measures of a weight, whatever form it has: float [out, in], or codes with their scale."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError
from .planes import bits, row_blocks, without_negative_zero
from .quantize import QuantizedWeight


def values(weight: Tensor | QuantizedWeight) -> Tensor:
    """The matrix that is stored: the floats themselves, or the codes."""
    return weight if isinstance(weight, Tensor) else weight.codes


def floats(weight: Tensor | QuantizedWeight, rows: slice) -> Tensor:
    """What some rows stand for, float32."""
    if isinstance(weight, Tensor):
        return weight[rows].float()
    return code_floats(weight.codes[rows]).mul_(weight.scale[rows].float())


def code_floats(codes: Tensor) -> Tensor:
    """int8 or finite float8_e4m3fn codes -> float32, ten times faster than .float() does float8 on a CPU.

    An E4M3 number is a float16 with four exponent and four mantissa bits missing: its bits shifted into place
    read as the value times 2**-8, subnormals included (the exponent biases are 7 and 15). NaN would become 480.
    """
    if codes.dtype != torch.float8_e4m3fn:
        return codes.float()
    wide = codes.view(torch.int8).to(torch.int16)
    half = (wide & 0x7F) << 7 | wide & torch.iinfo(torch.int16).min
    return half.view(torch.float16).float().mul_(256)


def nonzeros(weight: Tensor | QuantizedWeight) -> int:
    """How many weights are not zero (-0 is zero)."""
    stored = values(weight)
    return sum(int(torch.count_nonzero(bits(without_negative_zero(stored[rows])))) for rows in row_blocks(stored))


def relative_error(before: Tensor | QuantizedWeight, after: Tensor | QuantizedWeight) -> float:
    """||before - after|| / ||before|| (Frobenius, over what the weights stand for), six digits; 0 for all zeros."""
    difference = total = 0.0
    for rows in row_blocks(values(before)):
        old, new = floats(before, rows), floats(after, rows)
        total += float(torch.linalg.vector_norm(old)) ** 2
        difference += float(torch.linalg.vector_norm(old.sub(new))) ** 2
    return float(f"{(difference / total) ** 0.5:.6g}") if total else 0.0


def check_finite(weight: Tensor | QuantizedWeight, name: str) -> None:
    """Raise InputError with the place of the first NaN or infinity."""
    parts = {"weight": weight} if isinstance(weight, Tensor) else {"weight": weight.codes, "weight_scale": weight.scale}
    for part, values in parts.items():
        if not values.is_floating_point():
            continue
        for rows in row_blocks(values):
            block = values[rows].float() if values.element_size() == 1 else values[rows]
            if block.abs().amax().isfinite():
                continue
            row, column = (int(index) for index in block.isfinite().logical_not().nonzero()[0])
            raise InputError(
                f"{name}.{part}: {float(block[row, column])} at row {rows.start + row}, column {column}",
                hint="the source is damaged: download it again or ask its author",
            )
