"""The ways a linear lies in a checkpoint, and every form in which one can be read.

    dense   weight [out, in]                                              loads in stock vLLM and transformers
    slide   weight_packed [out, K'/2], weight_meta [out, K'/8] uint8      2:4 windows; stock loaders refuse it
    both    weight_scale [out, 1] float32 (8-bit schemes)

Weights of grouped schemes are packed in either way (kernels/groups.py has the bytes):

    dense   weight_packed [out, in · bits / 32] int32, weight_scale, weight_shape            pack-quantized
    gqs     weight_row_index, weight_groups, weight_values, weight_scale of the groups that are there; stock loaders
            refuse it
    both    weight_zero_point, if they are asymmetric

Ternary weights of others also come as BitNet stores them (ternary.py).

The layouts of a linear hold the same codes and convert into each other exactly. A layout that is not made for a linear
leaves it dense: slide those of grouped schemes, gqs those without a group pattern, both unquantized ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import DTYPE_NAMES, Checkpoint
from ..core.patterns import BlockPattern, Pattern
from ..core.quantize import QuantizedWeight, Weight
from ..core.schemes import BF16, FP8, INT8, Scheme
from ..core.ternary import LATENT, PACKED, PACKED_INVERSE, PER_BYTE, decode_ternary
from ..errors import InputError, PatternError, pick
from ..kernels.groups import DenseGroups, Groups, GroupSpec, canonical, kept_groups, pack, pack_dense, unpack_dense
from ..kernels.groups import unpack as unpack_groups
from ..kernels.windows import slide_and_pack, unpack, unslide
from ..runtime.slidesparse_record import GQS_FORMAT, SLIDE_FORMAT

LAYOUTS = ("slide", "gqs", "dense")
FLOATS = ("BF16", "F16", "F32")
CODES = {"I8": INT8, "F8_E4M3": FP8}
CODE_NAMES = {scheme.name: name for name, scheme in CODES.items()}
DAMAGED = "the file is damaged: convert the model again"


def parse_layout(name: str) -> str:
    """Check a layout's word; InputError with the nearest one if it is unknown."""
    return pick(name, LAYOUTS, "layout")


def layout_of(layout: str, scheme: Scheme, pattern: Pattern) -> str:
    """In which layout a linear lies in a checkpoint of that layout."""
    if layout == "slide" and scheme.quantized and not scheme.grouped:
        return layout
    return layout if layout == "gqs" and scheme.grouped and pattern.whole_groups else "dense"


def format_of(layout: str, scheme: Scheme, pattern: Pattern) -> str:
    """The compressed-tensors format word of a quantized linear in a checkpoint of that layout."""
    return {"slide": SLIDE_FORMAT, "gqs": GQS_FORMAT}.get(layout_of(layout, scheme, pattern), scheme.ct_format)


def group_spec(shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> GroupSpec:
    """A linear of a grouped scheme as its kernels know it."""
    kept = pattern.kept_groups(shape, scheme.group)
    return GroupSpec(*shape, scheme.group, scheme.bits, kept, scheme.symmetric, scheme.activation_bits)


@dataclass(frozen=True)
class Declared:
    """What a checkpoint's own record says of a linear."""

    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern


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

    def read_latent(self, checkpoint: Checkpoint) -> Tensor | None:
        """The floats [out, in] that a ternary weight was rounded from, where the checkpoint has them."""
        return checkpoint.read(self.tensors[0].name) if self.coding == LATENT else None

    def decode(self, parts: dict[str, Tensor], where: str) -> Weight:
        """The weight from its tensors, or from the same rows of each of them (not of what BitNet stores, nor of grouped
        schemes)."""
        if self.scheme.grouped:
            return _decode_groups(self, parts, where)
        first = parts[self.tensors[0].name]
        if self.coding:
            return decode_ternary(self.coding, first, parts[self.tensors[1].name] if len(self.tensors) > 1 else None)
        if not self.scheme.quantized:
            return first
        if self.layout == "slide":
            assert isinstance(self.pattern, BlockPattern)
            try:
                slid = unpack(first, parts[f"{self.name}.weight_meta"])
                first = unslide(slid, self.shape[1], self.pattern.length)
            except ValueError as error:
                raise PatternError(f"{where}: {error}", hint=DAMAGED) from error
        return QuantizedWeight(first, parts[f"{self.name}.weight_scale"].view(-1, 1), self.scheme)


def _decode_groups(stored: StoredLinear, parts: dict[str, Tensor], where: str) -> QuantizedWeight:
    named = {name.removeprefix(f"{stored.name}."): tensor for name, tensor in parts.items()}
    spec = group_spec(stored.shape, stored.scheme, stored.pattern)
    try:
        if stored.layout == "gqs":
            codes, scale, zero, _ = unpack_groups(Groups.of(named), spec)
        else:
            codes, scale, zero = unpack_dense(DenseGroups.of(named), spec)
    except ValueError as error:
        raise InputError(f"{where}: {error}", hint=DAMAGED) from error
    return QuantizedWeight(codes, scale, stored.scheme, None if stored.scheme.symmetric else zero)


def describe(
    checkpoint: Checkpoint, name: str, declared: Declared | None, *, ternary: str | None = None
) -> StoredLinear:
    """How linear `name` is stored. `declared`: what the checkpoint's own record says of it, if it does.

    ternary: whether its weights are, and then their coding, should they be no codes of a scheme.

    InputError for forms that cannot be taken: packed by others, asymmetric, not two-dimensional, odd scales.
    """
    weight, packed, scale = (f"{name}.{part}" for part in ("weight", "weight_packed", "weight_scale"))
    if declared and declared.scheme.grouped:
        return _describe_groups(checkpoint, name, declared)
    if f"{name}.weight_zero_point" in checkpoint.tensors:
        raise InputError(f"{name}: asymmetric quantization (it has a zero point)", hint="start from the BF16 model")
    if packed in checkpoint.tensors:
        found = _describe_slide(checkpoint, name, declared)
        return found if ternary is None else replace(found, scheme=found.scheme.as_ternary)
    spec = checkpoint.spec(weight)
    if len(spec.shape) != 2 or 0 in spec.shape:
        raise InputError(f"{weight}: shape {list(spec.shape)}, a matrix was expected")
    shape = (spec.shape[0], spec.shape[1])
    if declared and declared.shape != shape:
        raise InputError(f"{weight}: shape {list(shape)}, the checkpoint's record says {list(declared.shape)}")
    pattern = declared.pattern if declared else BlockPattern(None)
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
    return StoredLinear(name, shape, BF16.as_ternary, BlockPattern(None), "dense", (spec, scale_spec), coding)


def _describe_groups(checkpoint: Checkpoint, name: str, declared: Declared) -> StoredLinear:
    """A linear of a grouped scheme, in either layout."""
    layout = "gqs" if f"{name}.weight_row_index" in checkpoint.tensors else "dense"
    expected = stored_specs(name, declared.shape, declared.scheme, declared.pattern, layout)
    found = tuple(checkpoint.spec(spec.name) for spec in expected)
    for want, have in zip(expected, found, strict=True):
        if want != have:
            raise InputError(
                f"{have.name}: {have.dtype} {list(have.shape)}, {declared.scheme.name} {declared.pattern} of "
                f"{list(declared.shape)} needs {want.dtype} {list(want.shape)}",
                hint="the record in config.json and the weights do not belong together",
            )
    return StoredLinear(name, declared.shape, declared.scheme, declared.pattern, layout, found)


def _describe_slide(checkpoint: Checkpoint, name: str, declared: Declared | None) -> StoredLinear:
    parts = [f"{name}.{part}" for part in ("weight_packed", "weight_meta", "weight_scale")]
    if parts[1] not in checkpoint.tensors or declared is None:
        raise InputError(
            f"{parts[0]}: packed weights without {'weight_meta' if declared else 'a slidesparse_config record'}",
            hint="only slideconvert's own packed weights can be read; for others start from the BF16 model",
        )
    pattern, shape = declared.pattern, declared.shape
    packed = checkpoint.spec(parts[0])
    if packed.dtype not in CODES:
        raise InputError(f"{parts[0]}: dtype {packed.dtype}, INT8 or FP8 codes were expected")
    scheme = CODES[packed.dtype]
    expected = stored_specs(name, shape, scheme, pattern, "slide")
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
    name: str,
    shape: tuple[int, int],
    scheme: Scheme,
    pattern: Pattern,
    layout: str,
    *,
    floats: str = "BF16",
    scale: str = "F32",
) -> tuple[TensorSpec, ...]:
    """The tensors that hold linear `name` in a checkpoint of that layout. floats: container dtype of unquantized
    weights; scale: of the scales per channel."""
    rows, columns = shape
    layout = layout_of(layout, scheme, pattern)
    if not scheme.quantized:
        return (TensorSpec(f"{name}.weight", floats, shape),)
    if scheme.grouped:
        parts = group_spec(shape, scheme, pattern).tensors(layout)
        return tuple(TensorSpec(f"{name}.{part}", DTYPE_NAMES[dtype], size) for part, (size, dtype) in parts.items())
    dtype = CODE_NAMES[scheme.name]
    scale_spec = TensorSpec(f"{name}.weight_scale", scale, (rows, 1))
    if layout == "dense":
        return (TensorSpec(f"{name}.weight", dtype, shape), scale_spec)
    assert isinstance(pattern, BlockPattern)
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
    layout = layout_of(layout, weight.scheme, pattern)
    if weight.scheme.grouped:
        return _stored_groups(name, weight, pattern, layout)
    if layout == "dense":
        return {f"{name}.weight": weight.codes, f"{name}.weight_scale": weight.scale}
    assert isinstance(pattern, BlockPattern)
    try:
        values, meta = slide_and_pack(weight.codes, pattern.length)
    except ValueError as error:
        hint = "prune first (slideconvert sparsify) or name the pattern that the weights really have"
        raise PatternError(f"{name}: {error}", hint=hint) from error
    return {f"{name}.weight_packed": values, f"{name}.weight_meta": meta, f"{name}.weight_scale": weight.scale}


def _stored_groups(name: str, weight: QuantizedWeight, pattern: Pattern, layout: str) -> dict[str, Tensor]:
    rows, columns = weight.codes.shape
    spec = group_spec((rows, columns), weight.scheme, pattern)
    scale, zero = canonical(weight.codes, weight.scale, weight.zero, spec)
    try:
        if layout == "gqs":
            named = pack(weight.codes, scale, zero, kept_groups(weight.codes, spec), spec).named()
        else:
            named = pack_dense(weight.codes, scale, zero, spec).named()
    except ValueError as error:
        raise PatternError(f"{name}: {error}", hint="this is a defect: report it") from error
    return {f"{name}.{part}": tensor for part, tensor in named.items()}
