"""The two ways a linear lies in a checkpoint, and every form in which one can be read.

    dense   weight [out, in]                                              loads in stock vLLM and transformers
    slide   weight_packed [out, K'/2], weight_meta [out, K'/8] uint8      2:4 windows; stock loaders refuse it
    both    weight_scale [out, 1] float32 (8-bit schemes)

Ternary weights of others also come as BitNet stores them (ternary.py).

The two layouts hold the same codes and convert into each other exactly. Unquantized linears are always dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from .checkpoint.format import TensorSpec
from .checkpoint.reader import Checkpoint
from .errors import InputError, pick
from .pack import slide_and_pack, unpack
from .patterns import Pattern
from .quantize import QuantizedWeight, Weight
from .runtime.slidesparse_record import SLIDE_FORMAT as SLIDE_FORMAT
from .schemes import BF16, FP8, INT8, Scheme
from .slide import unslide
from .ternary import MASTERS, PACKED, PACKED_INVERSE, PER_BYTE, decode_ternary

LAYOUTS = ("slide", "dense")
FLOATS = ("BF16", "F16", "F32")
CODES = {"I8": INT8, "F8_E4M3": FP8}
CODE_NAMES = {scheme.name: name for name, scheme in CODES.items()}


def parse_layout(name: str) -> str:
    """Check a layout's word; InputError with the nearest one if it is unknown."""
    return pick(name, LAYOUTS, "layout")


@dataclass(frozen=True)
class StoredLinear:
    """How one linear of a checkpoint is stored.

    shape: (out, in). scheme: bf16 for any float dtype, and for ternary weights as BitNet stores them. pattern: what the
    checkpoint declares, else 2:inf. tensors: the tensors that hold it. coding: the form of ternary weights that are not
    codes already (ternary.py), "" for all others.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern
    layout: str
    tensors: tuple[TensorSpec, ...]
    coding: str = ""

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.tensors)

    def read(self, checkpoint: Checkpoint) -> Weight:
        """The weight as float [out, in], or as its codes and scale, which it always is if it is ternary."""
        return self.decode({spec.name: checkpoint.read(spec.name) for spec in self.tensors}, self.name)

    def read_masters(self, checkpoint: Checkpoint) -> Tensor | None:
        """The floats [out, in] that a ternary weight was rounded from, where the checkpoint has them."""
        return checkpoint.read(self.tensors[0].name) if self.coding == MASTERS else None

    def decode(self, parts: dict[str, Tensor], where: str) -> Weight:
        """The weight from its tensors, or from the same rows of each of them (not of what BitNet stores)."""
        first = parts[self.tensors[0].name]
        if self.coding:
            return decode_ternary(self.coding, first, parts[self.tensors[1].name] if len(self.tensors) > 1 else None)
        if not self.scheme.quantized:
            return first
        if self.layout == "slide":
            slid = unpack(first, parts[f"{self.name}.weight_meta"], where)
            first = unslide(slid, self.pattern, self.shape[1], where)
        return QuantizedWeight(first, parts[f"{self.name}.weight_scale"].view(-1, 1), self.scheme)


def describe(
    checkpoint: Checkpoint, name: str, declared: tuple[Pattern, tuple[int, int]] | None, *, ternary: str | None = None
) -> StoredLinear:
    """How linear `name` is stored. `declared`: pattern and (out, in) from the checkpoint's own record, if any.

    ternary: whether its weights are, and then their coding, should they be no codes of a scheme.

    InputError for forms that cannot be taken: packed by others, asymmetric, not two-dimensional, odd scales.
    """
    weight, packed, scale = (f"{name}.{part}" for part in ("weight", "weight_packed", "weight_scale"))
    if f"{name}.weight_zero_point" in checkpoint.tensors:
        raise InputError(f"{name}: asymmetric quantization (it has a zero point)", hint="start from the BF16 model")
    if packed in checkpoint.tensors:
        found = _describe_slide(checkpoint, name, declared)
        return found if ternary is None else replace(found, scheme=found.scheme.as_ternary)
    spec = checkpoint.spec(weight)
    if len(spec.shape) != 2 or 0 in spec.shape:
        raise InputError(f"{weight}: shape {list(spec.shape)}, a matrix was expected")
    shape = (spec.shape[0], spec.shape[1])
    if declared and declared[1] != shape:
        raise InputError(f"{weight}: shape {list(shape)}, the checkpoint's record says {list(declared[1])}")
    pattern = declared[0] if declared else Pattern(None)
    if ternary in (PACKED, PACKED_INVERSE):
        return _describe_packed_ternary(checkpoint, spec, scale, ternary)
    if spec.dtype in FLOATS:
        scheme = BF16 if ternary is None else BF16.as_ternary
        return StoredLinear(name, shape, scheme, pattern, "dense", (spec,), ternary or "")
    if spec.dtype not in CODES:
        raise InputError(f"{weight}: dtype {spec.dtype}", hint="weights must be BF16, F16, F32, or INT8/FP8 codes")
    scale_spec = checkpoint.spec(scale)
    if scale_spec.dtype not in FLOATS or scale_spec.shape not in ((shape[0], 1), (shape[0],)):
        raise InputError(
            f"{scale}: {scale_spec.dtype} {list(scale_spec.shape)}, one float per output channel was expected "
            f"([{shape[0]}, 1])",
            hint="only per-channel symmetric checkpoints can be taken: start from the BF16 model",
        )
    scheme = CODES[spec.dtype] if ternary is None else CODES[spec.dtype].as_ternary
    return StoredLinear(name, shape, scheme, pattern, "dense", (spec, scale_spec))


def _describe_packed_ternary(checkpoint: Checkpoint, spec: TensorSpec, scale: str, coding: str) -> StoredLinear:
    """Weights as BitNet packs them."""
    name, scale_spec = spec.name.removesuffix(".weight"), checkpoint.spec(scale)
    if spec.dtype != "U8" or scale_spec.dtype not in FLOATS or math.prod(scale_spec.shape) != 1:
        raise InputError(
            f"{name}: {spec.dtype} weights with a {scale_spec.dtype} {list(scale_spec.shape)} scale; packed BitNet "
            "weights are U8 with one float",
            hint="the checkpoint and the quantization_config in its config.json disagree",
        )
    shape = (spec.shape[0] * PER_BYTE, spec.shape[1])
    return StoredLinear(name, shape, BF16.as_ternary, Pattern(None), "dense", (spec, scale_spec), coding)


def _describe_slide(
    checkpoint: Checkpoint, name: str, declared: tuple[Pattern, tuple[int, int]] | None
) -> StoredLinear:
    parts = [f"{name}.{part}" for part in ("weight_packed", "weight_meta", "weight_scale")]
    if parts[1] not in checkpoint.tensors or declared is None:
        raise InputError(
            f"{parts[0]}: packed weights without {'weight_meta' if declared else 'a slidesparse_config record'}",
            hint="only slideconvert's own packed weights can be read; for others start from the BF16 model",
        )
    pattern, shape = declared
    packed = checkpoint.spec(parts[0])
    if packed.dtype not in CODES:
        raise InputError(f"{parts[0]}: dtype {packed.dtype}, INT8 or FP8 codes were expected")
    scheme = CODES[packed.dtype]
    expected = stored_specs(name, shape, packed.dtype, pattern, "slide")
    found = tuple(checkpoint.spec(part) for part in parts)
    for want, have in zip(expected, found, strict=True):
        other_float = want.name == parts[2] and have.dtype in FLOATS and want.shape == have.shape
        if want != have and not other_float:
            raise InputError(
                f"{have.name}: {have.dtype} {list(have.shape)}, {pattern} of {list(shape)} needs {want.dtype} "
                f"{list(want.shape)}",
                hint="the record in config.json and the weights do not belong together",
            )
    return StoredLinear(name, shape, scheme, pattern, "slide", found)


def stored_specs(
    name: str, shape: tuple[int, int], dtype: str, pattern: Pattern, layout: str, scale: str = "F32"
) -> tuple[TensorSpec, ...]:
    """The tensors that hold linear `name`, for weights of container dtype `dtype` (codes or floats)."""
    rows, columns = shape
    if dtype in FLOATS:
        return (TensorSpec(f"{name}.weight", dtype, shape),)
    scale_spec = TensorSpec(f"{name}.weight_scale", scale, (rows, 1))
    if layout == "dense":
        return (TensorSpec(f"{name}.weight", dtype, shape), scale_spec)
    slid = pattern.slid_columns(columns)
    return (
        TensorSpec(f"{name}.weight_packed", dtype, (rows, slid // 2)),
        TensorSpec(f"{name}.weight_meta", "U8", (rows, slid // 8)),
        scale_spec,
    )


def stored_tensors(name: str, weight: Weight, pattern: Pattern, layout: str) -> dict[str, Tensor]:
    """The tensors of `stored_specs`, filled. PatternError if the weight does not follow its pattern."""
    if isinstance(weight, Tensor):
        return {f"{name}.weight": weight}
    if layout == "dense":
        return {f"{name}.weight": weight.codes, f"{name}.weight_scale": weight.scale}
    values, meta = slide_and_pack(weight.codes, pattern, name)
    return {f"{name}.weight_packed": values, f"{name}.weight_meta": meta, f"{name}.weight_scale": weight.scale}
