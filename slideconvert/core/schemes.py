"""Number schemes: how a weight and its activations are stored and scaled. Everything derived lives here.

INT8 and FP8 are symmetric, so that a pruned code means exactly zero. Weights have one float32 scale
per output channel, scale = absmax / qmax; activations are quantized per token when the model runs, by the
same rule. The scale is kept in float32: bfloat16 would move every weight of a row by up to 0.4 %.

Grouped schemes (w4a16, w4a8, w8a16) have one bfloat16 scale for every `group` consecutive weights of a row, rounded
before the codes are found, and an integer zero point: a stored code c means (c - zero) * scale, so that zero is exact
here as well. Symmetric ones have the zero point in the middle, everywhere and so nowhere stored.

Ternary weights (BitNet) are stored as INT8 or FP8, of all codes only -1, 0 and 1 in use, scale = their magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, pick

GROUP_SIZES = (4, 8, 16, 32, 64, 128)
"""Weights that may share a scale in a grouped scheme."""
GROUP = 128
"""How many do unless said otherwise: what is usual for 4 bits."""


def fitting_sizes(columns: int) -> str:
    """The way out where groups do not divide rows of so many columns, in words."""
    fits = [str(size) for size in GROUP_SIZES if columns % size == 0]
    return f"use a group size of {', '.join(fits)}" if fits else "keep this linear (keep: true)"


@dataclass(frozen=True)
class Scheme:
    """One number scheme.

    name: the word on the command line and in recipes.
    dtype: name of the torch dtype of codes in memory, and of stored ones but for grouped schemes, whose codes less
    their zero points are wider.
    bits: of one stored weight.
    qmax: largest code magnitude; scale = absmax / qmax. 0 for the unquantized scheme.
    ct_type, ct_format: how compressed-tensors calls the number type and the dense storage.
    ternary: weights are -1, 0 or 1 times the scale of their row, also where they are stored as floats.
    activation_bits: 8 where activations are quantized per token, 16 where they stay floats.
    group: consecutive weights of a row that share a scale; 0 where the whole row does.
    symmetric: whether zero is the code in the middle.
    """

    name: str
    dtype: str
    bits: int
    qmax: float
    ct_type: str = ""
    ct_format: str = ""
    ternary: bool = False
    activation_bits: int = 8
    group: int = 0
    symmetric: bool = True

    @property
    def quantized(self) -> bool:
        return self.qmax > 0

    @property
    def grouped(self) -> bool:
        """Whether scales belong to groups of weights, and codes are packed."""
        return self.group > 0

    @property
    def top(self) -> int:
        """The largest stored code of a grouped scheme; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grouped scheme, and that of groups without weights."""
        return 2 ** (self.bits - 1)

    @property
    def as_ternary(self) -> Scheme:
        """The same storage for weights that stay ternary."""
        return replace(self, qmax=1.0 if self.quantized else 0.0, ternary=True)

    @property
    def grid(self) -> Scheme:
        """In which codes are found: its own, or those of INT8 for ternary weights that are stored as floats."""
        return INT8.as_ternary if self.ternary and not self.quantized else self

    def in_groups(self, size: int, *, symmetric: bool) -> Scheme:
        """The grouped scheme with groups of another size, with or without zero points. InputError for odd sizes."""
        if size not in GROUP_SIZES:
            raise InputError(
                f"group size {size} is not supported", hint=f"use one of {', '.join(map(str, GROUP_SIZES))}"
            )
        return replace(self, group=size, symmetric=symmetric)

    def check_columns(self, columns: int, where: str) -> None:
        """Raise InputError if groups do not divide rows of `columns` weights."""
        if self.grouped and columns % self.group:
            raise InputError(
                f"{where}: {columns} input columns are no multiple of the group size {self.group}",
                hint=fitting_sizes(columns),
            )

    def describe(self) -> dict[str, Any]:
        """What of it a name does not tell, for records."""
        return {"group_size": self.group, "symmetric": self.symmetric} if self.grouped else {}

    def config_group(self, targets: list[str], storage: str) -> dict[str, Any]:
        """The compressed-tensors config group for these targets, with `storage` as its format.

        Only keys that stock transformers and stock vLLM accept: anything more is a validation error there.
        """
        scales = {"strategy": "group", "group_size": self.group} if self.grouped else {"strategy": "channel"}
        tokens = {"num_bits": 8, "type": self.ct_type, "symmetric": True, "strategy": "token", "dynamic": True}
        weights: dict[str, Any] = {"num_bits": self.bits, "type": self.ct_type, "symmetric": self.symmetric}
        return {
            "targets": targets,
            "weights": {**weights, **scales, "dynamic": False},
            "input_activations": tokens if self.activation_bits == 8 else None,
            "format": storage,
        }


INT8 = Scheme("int8", "int8", 8, 127.0, "int", "int-quantized")
FP8 = Scheme("fp8", "float8_e4m3fn", 8, 448.0, "float", "float-quantized")
BF16 = Scheme("bf16", "bfloat16", 16, 0.0, activation_bits=16)
PACK = "pack-quantized"
W4A16 = Scheme("w4a16", "int8", 4, 7.0, "int", PACK, activation_bits=16, group=GROUP)
W4A8 = Scheme("w4a8", "int8", 4, 7.0, "int", PACK, group=GROUP)
W8A16 = Scheme("w8a16", "int16", 8, 127.0, "int", PACK, activation_bits=16, group=GROUP)

SCHEMES = {scheme.name: scheme for scheme in (INT8, FP8, BF16, W4A16, W4A8, W8A16)}


def parse_scheme(name: str) -> Scheme:
    """'int8' -> Scheme. InputError with the nearest word for an unknown one."""
    return SCHEMES[pick(name, SCHEMES, "scheme")]


def read_scheme(name: str, described: dict[str, Any]) -> Scheme:
    """The scheme of a record: its name, and what `describe` tells besides. InputError, KeyError or ValueError."""
    scheme = parse_scheme(name)
    if not scheme.grouped:
        return scheme
    return scheme.in_groups(int(described["group_size"]), symmetric=bool(described["symmetric"]))
