"""Operations on weights of both forms: floats [out, in], or codes with their scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.planes import bits, row_blocks
from .quantize import Weight

LEAST_NORM, MOST_NORM = 1e-12, 1e18
"""Norms between these lose nothing when float32 sums their squares."""
MODERATE = 2.0**30
"""Values up to it, and largest values down to its reciprocal, may be squared and summed in float32."""


def values(weight: Weight) -> Tensor:
    """The stored matrix [out, in]: the floats themselves, or the codes."""
    return weight if isinstance(weight, Tensor) else weight.codes


def floats(weight: Weight) -> Tensor:
    """The values of a weight, [out, in] float32."""
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize()


def comparable(weight: Weight) -> Tensor:
    """A matrix [out, in] that orders the weights of each row like their values: the floats, or codes with one scale."""
    return weight if isinstance(weight, Tensor) else weight.comparable()


def take_rows(weight: Weight, rows: slice) -> Weight:
    """Some rows of a weight."""
    if isinstance(weight, Tensor):
        return weight[rows]
    grid = weight.grid.take_rows(rows)
    return replace(weight, codes=weight.codes[rows], scale=grid.scale, zero=grid.zero)


def scaled(weight: Weight, factor: float) -> Weight:
    """A weight times a power of two."""
    return weight * factor if isinstance(weight, Tensor) else replace(weight, scale=weight.scale * factor)


def nonzeros(weight: Weight) -> int:
    """The number of non-zero weights; -0 counts as zero."""
    stored = bits(values(weight))
    sign = int(values(weight).is_floating_point())  # shifted out, so that -0 counts as the zero it is
    return sum(int(torch.count_nonzero(stored[rows] << sign)) for rows in row_blocks(stored))


@dataclass(frozen=True)
class ChangeSums:
    """Sums over some rows of a weight before and after conversion; the sums of disjoint rows add up.

    energy, prune_loss, loss: squared Frobenius norms of the source, of the change by pruning alone, and of the whole
    change. nonzeros: counts in the source, after pruning, and as stored. product: the inner product of source and
    stored weight, and the energy of the stored weight; both 0 where no weight has moved.
    """

    energy: float = 0.0
    prune_loss: float = 0.0
    loss: float = 0.0
    nonzeros: tuple[int, int, int] = (0, 0, 0)
    product: tuple[float, float] = (0.0, 0.0)

    @property
    def cosine(self) -> float:
        """Cosine between source and stored weight, from -1 to 1; near 0 for unrelated ones, 0 if one has no energy."""
        both = (self.energy * self.product[1]) ** 0.5
        return self.product[0] / both if both else 0.0

    def __add__(self, other: ChangeSums) -> ChangeSums:
        counts = tuple(mine + theirs for mine, theirs in zip(self.nonzeros, other.nonzeros, strict=True))
        return ChangeSums(
            self.energy + other.energy,
            self.prune_loss + other.prune_loss,
            self.loss + other.loss,
            (counts[0], counts[1], counts[2]),
            (self.product[0] + other.product[0], self.product[1] + other.product[1]),
        )


def sum_changes(before: Weight, pruned: Weight, after: Weight) -> ChangeSums:
    """The sums over some rows of a weight: as in the source, after pruning, and as stored."""
    old = floats(before)
    prune_loss = 0.0 if pruned is before else energy(old - floats(pruned))
    loss = prune_loss if after is pruned else energy(old - floats(after))
    first = nonzeros(before)
    second = first if pruned is before else nonzeros(pruned)
    third = second if after is pruned else nonzeros(after)
    return ChangeSums(energy(old), prune_loss, loss, (first, second, third))


def energy(matrix: Tensor) -> float:
    """The squared Frobenius norm, also where squares leave the range of float32."""
    norm = float(torch.linalg.vector_norm(matrix))
    if not LEAST_NORM < norm < MOST_NORM:
        unit = unit_of(matrix)
        norm = float(torch.linalg.vector_norm(matrix * unit)) / unit
    return norm**2


def inner_product(first: Tensor, second: Tensor) -> float:
    """The sum of first · second, float32 matrices of one shape, also where products leave the range of float32."""
    units = unit_of(first), unit_of(second)
    a, b = (matrix if unit == 1 else matrix * unit for matrix, unit in zip((first, second), units, strict=True))
    return float((a * b).sum(dtype=torch.float64)) / units[0] / units[1]


def unit_of(matrix: Tensor) -> float:
    """A power of two, which moves no rounding: `matrix` times it has squares and sums of squares within float32.

    1 for all but the strangest matrices, and for those of zeros or with values that are not finite.
    """
    largest = float(matrix.abs().amax())
    if MODERATE**-1 <= largest <= MODERATE or not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** max(-126, min(126, -math.frexp(largest)[1]))


def ratio(loss: float, whole: float) -> float:
    """sqrt(loss / whole) of two energies, a relative Frobenius error, with six digits; 0 for a weight of zeros."""
    return float(f"{(loss / whole) ** 0.5:.6g}") if whole else 0.0


def check_finite(weight: Weight, name: str) -> None:
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
            raise not_finite(f"{name}.{part}", float(block[row, column]), (rows.start + row, column))


def not_finite(tensor: str, value: float, place: tuple[int, ...]) -> InputError:
    """The error for a NaN or an infinity. tensor: its name. place: the index of the element."""
    where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"element {', '.join(map(str, place))}"
    return InputError(
        f"{tensor}: {value} at {where}", hint="the source is damaged: download it again or ask its author"
    )
