"""Grouped linears on a CPU: their products, and how the kernel divides them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slideconvert.kernels.backends.choose import choose
from slideconvert.kernels.group_gemm import reference
from slideconvert.kernels.group_gemm.prepared import Layout
from slideconvert.kernels.group_spec import BITS, LAYOUTS, SIZES, GroupSpec
from slideconvert.kernels.groups import Weight, decode, pack, pack_dense
from slideconvert.kernels.linear import SlideSparseLinear
from tests.helpers.linears import default_dtype
from tests.unit.test_groups import random_weight

SPEC = GroupSpec(37, 16 * 19, 16, 4, 0, False)


def made(spec: GroupSpec, layout: str, share: float = 0.5) -> tuple[GroupSpec, Weight]:
    spec, *weight = random_weight(spec, share)
    if layout == "gqs":
        return spec, pack(*weight, spec)
    spec = replace(spec, kept=spec.whole, layout="dense")
    return spec, pack_dense(*weight[:3], spec)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_activations_of_every_kind(dtype: torch.dtype) -> None:
    for activation in (16, 8):
        spec, weight = made(replace(SPEC, activation_bits=activation), "gqs")
        x = torch.randn(5, spec.columns).to(dtype)
        linear = SlideSparseLinear.of(spec, weight.named(), None)
        expected = reference.group_gemm(x, weight, None, spec).float()
        codes, scale = decode(weight, spec)
        magnitudes = x.float().abs() @ (codes.float() * scale.float().repeat_interleave(spec.size, 1)).abs().T
        found = linear(x)
        assert found.dtype == dtype  # weights and results are rounded
        assert ((found.float() - expected).abs() <= 2 * torch.finfo(dtype).eps * magnitudes + 1e-6).all()


def test_eight_bit_activations_are_exact_before_the_scales() -> None:
    """Powers of two as scales: nothing is rounded, and the result is that of integers."""
    spec, codes, scale, zero, keep = random_weight(replace(SPEC, activation_bits=8), 0.5)
    weight = pack(codes, scale.sign().clamp(min=0.5), zero, keep, spec)
    whole = torch.randint(-127, 128, (4, spec.columns))
    whole[:, 0] = 127
    found = reference.group_gemm(whole.float(), weight, None, spec)
    decoded, scales = decode(weight, spec)
    exact = whole.double() @ (decoded.double() * scales.double().repeat_interleave(spec.size, 1)).T
    assert torch.equal(found.double(), exact)


@pytest.mark.parametrize("size", SIZES)
def test_the_prepared_weight_of_the_kernel_gives_the_tensors_back(size: int) -> None:
    for bits in BITS:
        for symmetric in (False, True):
            for layout in LAYOUTS:
                for rows, across, share in ((50, 19, 0.5), (33, 70, 0.02), (1, 1, 1.0), (64, 256 // size + 1, 0.0)):
                    spec, weight = made(GroupSpec(rows, size * across, size, bits, 0, symmetric), layout, share)
                    lay = Layout(spec)
                    with default_dtype(torch.bfloat16):
                        back = lay.weight(lay.build(weight)).named()
                    for name, tensor in weight.named().items():
                        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)


def test_a_backend_that_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot run 37x304 .* on cpu: it needs a CUDA device, not cpu"):
        choose(SPEC, torch.device("cpu"), "group_gemm")
    with pytest.raises(ValueError, match="unknown backend 'fast', known: auto, both, group_gemm, reference"):
        choose(SPEC, torch.device("cpu"), "fast")
    spec, weight = made(SPEC, "gqs")
    with pytest.raises(ValueError, match="goes from 1 to"):
        SlideSparseLinear.of(spec, {**weight.named(), "weight_row_index": weight.row_index + 1}, None)  # type: ignore[union-attr]
