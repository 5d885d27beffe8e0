"""Slide: 8-bit codes re-laid into overlapping 2:4 windows (kernels/windows.py); stock loaders refuse it.

weight_packed   [out, K'/2] I8 or F8_E4M3
weight_meta     [out, K'/8] U8
weight_scale    [out, 1] float
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import DTYPE_NAMES
from ..core.patterns import Pattern
from ..core.quantize import QuantizedWeight, Weight
from ..core.schemes import Scheme
from ..errors import InputError, PatternError
from ..kernels.slide_spec import SlideSpec
from ..kernels.windows import slide_and_pack, unpack, unslide
from ..runtime.slidesparse_record import SLIDE, SLIDE_FORMAT
from .base import DAMAGED, Format, Found, StoredLinear, block_length
from .channels import CODE_NAMES, CODES


class Slide(Format):
    """Packed windows of codes with one scale per output channel."""

    layout: ClassVar[str] = SLIDE
    takes: ClassVar[str] = "int8 and fp8 weights"
    description: ClassVar[str] = "overlapping 2:4 windows for sparse tensor cores"
    slid: ClassVar[bool] = True
    canonical: ClassVar[bool] = True
    checks_pattern: ClassVar[bool] = True

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return scheme.name in CODE_NAMES

    def match(self, found: Found) -> bool:
        return found.has("weight_packed")

    def describe(self, found: Found) -> StoredLinear:
        packed = found.spec("weight_packed")
        if not found.has("weight_meta") or found.declared is None:
            missing = "weight_meta" if found.declared else "a slidesparse_config record"
            raise InputError(
                f"{packed.name}: packed weights without {missing}",
                hint="only slideconvert's own packed weights can be read; for others start from the BF16 model",
            )
        if packed.dtype not in CODES:
            raise InputError(f"{packed.name}: dtype {packed.dtype}, INT8 or FP8 codes were expected")
        scheme, shape = CODES[packed.dtype], found.declared.shape
        tensors = found.check(self.specs(found.name, shape, scheme, found.pattern), scheme, free="weight_scale")
        return StoredLinear(found.name, shape, found.constrained(scheme), found.pattern, self, tensors)

    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        parts = self.linear_spec(shape, scheme, pattern).tensors().items()
        *codes, scale = (TensorSpec(f"{name}.{part}", DTYPE_NAMES[kind], size) for part, (size, kind) in parts)
        return *codes, replace(scale, dtype=dtype or scale.dtype)

    def linear_spec(self, shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> SlideSpec:
        return SlideSpec(*shape, block_length(pattern), scheme.torch_dtype, self.layout)

    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        assert isinstance(weight, QuantizedWeight)
        try:
            values, meta = slide_and_pack(weight.codes, block_length(pattern))
        except ValueError as error:
            hint = "prune first (slideconvert sparsify), or name the pattern that the weights satisfy"
            raise PatternError(f"{name}: {error}", hint=hint) from error
        return {f"{name}.weight_packed": values, f"{name}.weight_meta": meta, f"{name}.weight_scale": weight.scale}

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        values, meta, scale = (tensors[spec.name] for spec in stored.tensors)
        try:
            codes = unslide(unpack(values, meta), stored.shape[1], block_length(stored.pattern))
        except ValueError as error:
            raise PatternError(f"{where}: {error}", hint=DAMAGED) from error
        return QuantizedWeight(codes, scale.view(-1, 1), stored.scheme)

    def ct_format(self, scheme: Scheme) -> str:
        return SLIDE_FORMAT
