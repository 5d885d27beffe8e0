"""Weights with one scale per output channel, or none: the formats that stock transformers and stock vLLM read.

floats   weight [out, in] BF16, F16 or F32
codes    weight [out, in] I8 or F8_E4M3, weight_scale [out, 1] float: compressed-tensors int-quantized, float-quantized
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..core.patterns import Pattern
from ..core.quantize import QuantizedWeight, Weight
from ..core.schemes import BF16, FP8, INT8, Scheme
from ..errors import InputError
from ..kernels.slide_spec import SlideSpec
from .base import FLOAT_NAMES, Format, Found, StoredLinear, block_length

CODES = {"I8": INT8, "F8_E4M3": FP8}
"""The scheme of codes by their container dtype."""
CODE_NAMES = {scheme.name: name for name, scheme in CODES.items()}


class Floats(Format):
    """Unquantized weights."""

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return not scheme.quantized and scheme.ternary == bool(self.coding)

    def match(self, found: Found) -> bool:
        return found.coding is None and found.has("weight") and found.spec("weight").dtype in FLOAT_NAMES

    def describe(self, found: Found) -> StoredLinear:
        spec = found.matrix()
        return StoredLinear(
            found.name, (spec.shape[0], spec.shape[1]), found.constrained(BF16), found.pattern, self, (spec,)
        )

    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        return (TensorSpec(f"{name}.weight", dtype or "BF16", shape),)

    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        assert isinstance(weight, Tensor)
        return {f"{name}.weight": weight}

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        return tensors[f"{stored.name}.weight"]


class ChannelCodes(Format):
    """8-bit codes as a plain matrix."""

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return scheme.name in CODE_NAMES

    def match(self, found: Found) -> bool:
        return True  # whatever no other format claims: `describe` says what is wrong with it

    def describe(self, found: Found) -> StoredLinear:
        spec = found.matrix()
        if spec.dtype not in CODES:
            raise InputError(
                f"{spec.name}: dtype {spec.dtype}", hint="weights must be BF16, F16, F32, or INT8/FP8 codes"
            )
        rows, columns = spec.shape
        scale = found.spec("weight_scale")
        if scale.dtype not in FLOAT_NAMES or scale.shape not in ((rows, 1), (rows,)):
            raise InputError(
                f"{scale.name}: {scale.dtype} {list(scale.shape)}, one float per output channel was expected "
                f"([{rows}, 1])",
                hint="only per-channel symmetric checkpoints can be taken: start from the BF16 model",
            )
        scheme = found.constrained(CODES[spec.dtype])
        return StoredLinear(found.name, (rows, columns), scheme, found.pattern, self, (spec, scale))

    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        codes = TensorSpec(f"{name}.weight", CODE_NAMES[scheme.name], shape)
        return codes, TensorSpec(f"{name}.weight_scale", dtype or "F32", (shape[0], 1))

    def linear_spec(self, shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> SlideSpec:
        return SlideSpec(*shape, block_length(pattern), scheme.torch_dtype, self.layout)

    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        assert isinstance(weight, QuantizedWeight)
        return {f"{name}.weight": weight.codes, f"{name}.weight_scale": weight.scale}

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        scale = tensors[f"{stored.name}.weight_scale"].view(-1, 1)
        return QuantizedWeight(tensors[f"{stored.name}.weight"], scale, stored.scheme)
