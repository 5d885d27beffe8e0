"""The module for linears of every kind on a CPU: from an empty checkpoint to a saved one."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.spec import LinearSpec
from tests.helpers.linears import SPECS, all_same

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
CPU = torch.device("cpu")


@EVERY
def test_the_life_of_a_linear(spec: LinearSpec) -> None:
    linear = SlideSparseLinear(spec, bias=True, dtype=torch.float32, device="meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="has not been prepared"):
        linear(torch.randn(1, spec.columns))
    named, bias = spec.random(CPU).named(), torch.randn(spec.rows)
    linear.load_state_dict({**named, "bias": bias})
    linear.half()  # casts the bias alone
    linear.prepare()
    prepared = linear.prepared
    linear.prepare()
    assert linear.prepared is prepared and dict(linear.named_parameters()).keys() == {"bias"}
    assert linear.bias is not None and linear.bias.dtype == torch.float16
    assert linear.why == "plain torch: the device is cpu" and "backend=reference" in linear.extra_repr()
    x = torch.randn(2, 3, spec.columns)
    expected = SlideSparseLinear.of(spec, named, bias.half())(x)
    assert torch.equal(linear(x), expected) and expected.shape == (2, 3, spec.rows) and expected.std() > 0
    saved = linear.bfloat16().state_dict()
    assert saved.pop("bias").dtype == torch.bfloat16 and all_same(saved, named)


@EVERY
def test_casts_change_the_bias_alone(spec: LinearSpec) -> None:
    named, bias, x = spec.random(CPU).named(), torch.randn(spec.rows), torch.randn(4, spec.columns)
    linear = SlideSparseLinear.of(spec, named, bias)
    before = linear(x)
    assert ((linear.bfloat16()(x) - before).abs() <= 2**-8 * bias.abs() + 2**-22 * before.abs().max()).all()


@EVERY
def test_inputs_of_another_width_are_refused(spec: LinearSpec) -> None:
    """Also where as many numbers would make whole rows."""
    linear = SlideSparseLinear.of(spec, spec.random(CPU).named(), None)
    width = spec.columns
    with pytest.raises(ValueError, match=f"an input of {2 * width} columns, {width} were expected"):
        linear(torch.randn(2, 2 * width))
