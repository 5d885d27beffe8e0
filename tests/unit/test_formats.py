"""Every storage format, by the registry: what is encoded has the tensors that were announced, is recognized in a
checkpoint, and decodes to the same weight; damage is refused with the linear's name and a hint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from slideconvert.checkpoint.reader import DTYPE_NAMES, Checkpoint
from slideconvert.core.patterns import BlockPattern, GroupPattern, Pattern
from slideconvert.core.quantize import QuantizedWeight, Weight
from slideconvert.core.schemes import BF16, FP8, INT8, SCHEMES, W4A8, W4A16, W8A16, Scheme
from slideconvert.core.ternary import FLOATS, LATENT, PACKED, PACKED_INVERSE
from slideconvert.errors import InputError, PatternError
from slideconvert.formats.base import Declared, Format, StoredLinear
from slideconvert.formats.registry import FORMATS, OWN, describe, format_for, usual_layout
from slideconvert.runtime import slidesparse_record
from slideconvert.runtime.slidesparse_record import DENSE, LAYOUTS

NAME, SHAPE = "model.layers.0.mlp.up_proj", (24, 64)
CASES: list[tuple[Scheme, Pattern]] = [
    (BF16, BlockPattern(8)),
    (BF16.as_ternary, BlockPattern(6)),
    *((scheme, BlockPattern(length)) for scheme in (INT8, FP8, INT8.as_ternary) for length in (4, 8, None)),
    *(
        (replace(scheme, group=16, symmetric=symmetric), pattern)
        for scheme in (W4A16, W4A8, W8A16)
        for symmetric in (True, False)
        for pattern in (BlockPattern(8), GroupPattern(16, 0.5))
    ),
]
READ_ONLY = {PACKED, PACKED_INVERSE, LATENT}
"""Forms in which only others store weights: tests/convert/test_bitnet.py reads them."""

every_case = pytest.mark.parametrize(("scheme", "pattern"), CASES, ids=lambda one: getattr(one, "name", str(one)))
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def weight_of(scheme: Scheme, pattern: Pattern) -> Weight:
    """A pruned weight in its scheme."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weight *= pattern.select_largest(weight)
    return (
        scheme.store(scheme.code_scheme.quantize(weight)) if scheme.ternary or scheme.quantized else weight.bfloat16()
    )


def stored_as(form: Format, scheme: Scheme, pattern: Pattern) -> StoredLinear:
    return StoredLinear(NAME, SHAPE, scheme, pattern, form, form.specs(NAME, SHAPE, scheme, pattern))


def parts(weight: Weight) -> list[Tensor]:
    """What a weight is made of, as bytes; scales and zero points of groups without weights mean nothing."""
    if isinstance(weight, Tensor):
        return [weight.contiguous().view(torch.uint8)]
    used = torch.ones_like(weight.scale, dtype=torch.bool)
    if weight.scheme.grouped:
        used = weight.codes.unflatten(1, (-1, weight.scheme.group)).ne(0).any(2)
    zero = torch.zeros(()) if weight.zero is None else weight.zero[used]
    return [part.contiguous().view(torch.uint8) for part in (weight.codes, weight.scale[used], zero.to(torch.uint8))]


def same(found: Weight, expected: Weight) -> bool:
    return all(map(torch.equal, parts(found), parts(expected)))


@every_layout
@every_case
def test_what_is_encoded_is_announced_recognized_and_decoded(
    layout: str, scheme: Scheme, pattern: Pattern, tmp_path: Path
) -> None:
    form, weight = format_for(layout, scheme, pattern), weight_of(scheme, pattern)
    assert form.layout == (layout if layout in OWN and form is OWN[layout] else DENSE)
    tensors = form.encode(NAME, weight, pattern)
    specs = form.specs(NAME, SHAPE, scheme, pattern)
    assert [(spec.name, spec.dtype, spec.shape) for spec in specs] == [
        (name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
    ]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    checkpoint = Checkpoint.open(tmp_path)
    coding = FLOATS if scheme.ternary else None
    stored = describe(checkpoint, NAME, Declared(SHAPE, scheme, pattern), coding=coding)
    assert (stored.format, stored.tensors, stored.scheme) == (form, specs, scheme)
    read = stored.read(checkpoint)
    if scheme is not CASES[1][0]:
        assert same(read, weight)
    else:  # ternary floats come as the codes that they stand for
        assert isinstance(read, QuantizedWeight) and torch.equal(read.dequantize().bfloat16(), weight)


def test_every_format_has_a_case() -> None:
    """So that a new one cannot be registered untested."""
    used = {format_for(layout, *case) for layout in LAYOUTS for case in CASES}
    assert {form for form in FORMATS if form.coding not in READ_ONLY} == used
    assert {scheme.name for scheme, _ in CASES} == SCHEMES.keys()


def test_names_of_layouts_and_formats_are_those_of_the_help_and_of_the_bundled_code() -> None:
    assert (*OWN, DENSE) == LAYOUTS
    words = {layout: form.ct_format(INT8) for layout, form in OWN.items()}
    for layout, word in words.items():
        assert slidesparse_record.packed_layouts({"format": word}) == [layout]


def test_the_usual_layout_is_the_one_that_sparse_kernels_read() -> None:
    assert usual_layout([INT8, W4A16], whole_groups=True) == "slide"
    assert usual_layout([W4A16], whole_groups=True) == "gqs"
    assert usual_layout([W4A16], whole_groups=False) == usual_layout([BF16], whole_groups=True) == "dense"


# ---- what is refused


def test_slide_refuses_weights_that_violate_the_pattern() -> None:
    weight = INT8.quantize(torch.ones(SHAPE))
    with pytest.raises(PatternError) as error:
        OWN["slide"].encode(NAME, weight, BlockPattern(8))
    assert error.value.what == f"{NAME}: row 0, columns 0 … 7 hold 8 non-zeros, 2:8 allows 6"
    assert "sparsify" in error.value.hint


@pytest.mark.parametrize(
    ("byte", "fault"),
    [
        (0x00, "row 0, window 0: positions 0 and 0 are not ascending"),
        (0x4E, "two windows hold the same input column"),  # the right half of one window, the left half of the next
    ],
)
def test_damage_of_slid_weights_is_refused_with_its_place(byte: int, fault: str) -> None:
    case = INT8, BlockPattern(8)
    stored = stored_as(OWN["slide"], *case)
    tensors = stored.encode(weight_of(*case))
    tensors[f"{NAME}.weight_meta"].fill_(byte)
    with pytest.raises(PatternError) as error:
        stored.decode(tensors, "rows 8")
    assert error.value.what.startswith(f"rows 8: {fault}") and "damaged" in error.value.hint


@pytest.mark.parametrize("layout", [*OWN, DENSE])
def test_damage_of_groups_is_refused_with_the_name(layout: str) -> None:
    case = replace(W4A16, group=16, symmetric=False), GroupPattern(16, 0.5)
    form = format_for(layout, *case)
    stored = stored_as(form, *case)
    tensors = stored.encode(weight_of(*case))
    tensors[f"{NAME}.weight_scale"].fill_(torch.nan)
    with pytest.raises(InputError) as error:
        stored.decode(tensors, NAME)
    assert error.value.what.startswith(f"{NAME}: ") and "not finite" in error.value.what
    assert "damaged" in error.value.hint


def test_zero_points_of_others_are_refused(tmp_path: Path) -> None:
    tensors = {f"{NAME}.{part}": torch.zeros(SHAPE, dtype=torch.int8) for part in ("weight", "weight_zero_point")}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="asymmetric quantization"):
        describe(Checkpoint.open(tmp_path), NAME, None, coding=None)
