"""bf16: weights stay floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import InputError
from ..quantize import Grid, Weight
from .base import Scheme
from .channel import INT8


@dataclass(frozen=True)
class FloatScheme(Scheme):
    """Floats without codes and scales. Ternary weights are stored as the product of code and scale."""

    quantized: ClassVar[bool] = False

    activation_bits: int = 16

    @property
    def code_scheme(self) -> Scheme:
        return INT8.as_ternary if self.ternary else self

    def check_whole_groups(self, size: int, where: str) -> None:
        return

    def grid(self, weight: Tensor) -> Grid:
        raise self._no_codes()

    def to_codes(self, scaled: Tensor, zero: Tensor | None = None) -> Tensor:
        raise self._no_codes()

    def store(self, weight: Weight) -> Weight:
        return weight if isinstance(weight, Tensor) else weight.dequantize().to(self.torch_dtype)

    def keeps(self, weight: Weight) -> bool:
        return isinstance(weight, Tensor)

    def rounding_error(self, values: Tensor, scale: Tensor) -> Tensor:
        return values.abs() * 2**-8  # the digits of bfloat16

    def _no_codes(self) -> InputError:
        return InputError(f"scheme {self.name} has no codes", hint="choose int8, fp8 or w4a16")
