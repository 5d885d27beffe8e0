"""Grouped linears in training: where they begin, what they compute, what of them moves, and what never does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slideconvert.core.patterns import BlockPattern, GroupPattern
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import GROUP_SIZES, INT8
from slideconvert.formats.groups import PackedGroups
from slideconvert.kernels.groups import canonical
from slideconvert.recover.groups import LEAST_SCALE, FrozenGroups, GroupTrainable, TrainedGroups
from slideconvert.recover.options import Schedule
from slideconvert.recover.trainable import Compressed, SurvivorLinear, make_trainable, trained_of
from slideconvert.recover.training import train
from tests.unit.test_groups_grid import BITS, SYMMETRIC, rows_of_kinds, scheme_of

ROWS, COLUMNS, SIZE = 12, 48, 8
PATTERN = GroupPattern(SIZE, 0.5)
STAGES = pytest.mark.parametrize("stage", [TrainedGroups, FrozenGroups])


def start(bits: int = 4, *, symmetric: bool = False, size: int = SIZE, seed: int = 1) -> QuantizedWeight:
    """Half of the groups of a random weight."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    pattern = GroupPattern(size, 0.5)
    return scheme_of(bits, size, symmetric=symmetric).quantize(weight * pattern.select_largest(weight))


def inputs(seed: int = 2) -> Tensor:
    return torch.randn(3, 10, COLUMNS, generator=torch.Generator().manual_seed(seed))


def stored(weight: QuantizedWeight) -> Tensor:
    """Codes as they lie in a file, 0 to the top."""
    zero = weight.scheme.middle if weight.zero is None else weight.zero.int().repeat_interleave(weight.scheme.group, 1)
    return weight.codes.int() + zero


def assert_same(made: QuantizedWeight, expected: QuantizedWeight) -> None:
    assert made.scheme == expected.scheme
    assert made.codes.dtype == expected.codes.dtype and torch.equal(made.codes, expected.codes)
    assert made.scale.dtype == torch.bfloat16 and torch.equal(made.scale, expected.scale)
    assert (made.zero is None) == (expected.zero is None)
    if made.zero is not None and expected.zero is not None:
        assert made.zero.dtype == torch.uint8 and torch.equal(made.zero, expected.zero)


@SYMMETRIC
@BITS
@STAGES
def test_it_starts_at_what_is_served(stage: type[GroupTrainable], bits: int, symmetric: bool) -> None:
    weight, bias = start(bits, symmetric=symmetric), torch.linspace(-1, 1, ROWS)
    x, dense = inputs(), weight.dequantize()
    assert torch.equal(stage(weight, None)(x), nn.functional.linear(x, dense))
    expected = nn.functional.linear(x, dense) + bias
    torch.testing.assert_close(stage(weight, bias)(x), expected, rtol=1e-5, atol=1e-5)  # sums of 48 in float32
    assert_same(stage(weight, bias).weight(), weight)


@SYMMETRIC
@BITS
@pytest.mark.parametrize("size", GROUP_SIZES)
@STAGES
def test_it_starts_at_weights_of_all_kinds(stage: type[GroupTrainable], size: int, bits: int, symmetric: bool) -> None:
    """Groups of zeros, of huge weights and of tiny ones among them, bit for bit as files have them. Groups too small to
    train are as good as zero."""
    weight = scheme_of(bits, size, symmetric=symmetric).quantize(torch.from_numpy(rows_of_kinds(size)))
    rows, columns = weight.codes.shape
    spec = PackedGroups().linear_spec((rows, columns), weight.scheme, GroupPattern(size, 0.0))
    scale, zero = canonical(weight.codes, weight.scale, weight.zero, spec)
    made, small = stage(weight, None).weight(), weight.scale.float() < LEAST_SCALE
    assert 0 < int(small.sum()) < 12
    assert torch.equal(made.scale[~small], scale[~small])
    assert zero is None or (made.zero is not None and torch.equal(made.zero[~small], zero[~small]))
    wide = small.repeat_interleave(size, 1)
    assert made.codes.dtype == weight.codes.dtype and torch.equal(made.codes[~wide], weight.codes[~wide])
    assert float(made.dequantize()[wide].abs().max()) < 2e-15 * weight.scheme.top


@SYMMETRIC
@BITS
def test_only_kept_groups_have_parameters(bits: int, symmetric: bool) -> None:
    weight = start(bits, symmetric=symmetric)
    groups = PATTERN.kept((ROWS, COLUMNS))
    grid = groups * (1 if symmetric else 2)
    trained, frozen = TrainedGroups(weight, None), FrozenGroups(weight, None)
    for linear, expected in ((trained, groups * SIZE + grid), (frozen, grid)):
        assert sum(parameter.numel() for parameter in linear.parameters()) == expected
        assert {id(parameter) for parameter, _ in linear.trained} == {id(one) for one in linear.parameters()}
    codes = sum(buffer.nbytes for buffer in frozen.buffers() if buffer.dtype == torch.uint8)
    assert codes == groups * SIZE * bits // 8, "packed"
    sizes = dict(zip(("latent", "scale", "zero"), (size for _, size in trained.trained), strict=False))
    there = weight.codes != 0
    within = weight.dequantize().view(-1, SIZE)[there.view(-1, SIZE).any(1)]
    assert sizes["latent"] == pytest.approx(float(within.square().mean()) ** 0.5)
    scales = weight.scale.float()[there.view(ROWS, -1, SIZE).any(2)]
    assert sizes["scale"] == pytest.approx(float(scales.square().mean()) ** 0.5)
    assert sizes.get("zero") == (None if symmetric else 1.0), "a step of a zero point is measured in codes"


def plain_gradients(weight: QuantizedWeight, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Autograd of y = x ((stored - zero) scale)ᵀ in float64: of every group's grid, and of the inputs."""
    size = weight.scheme.group
    scale = weight.scale.double().requires_grad_()
    zero = (stored(weight) - weight.codes.int())[:, ::size].double().requires_grad_()
    wide = x.double().requires_grad_()
    dense = (stored(weight).double() - zero.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)
    (wide @ dense.T * slope.double()).sum().backward()
    assert scale.grad is not None and zero.grad is not None and wide.grad is not None
    return scale.grad, zero.grad, wide.grad


@SYMMETRIC
@BITS
def test_slopes_of_frozen_codes_are_those_of_the_plain_formula(bits: int, symmetric: bool) -> None:
    """Sums of 30 products in float32; 1e-5 of the largest is generous."""
    weight, x = start(bits, symmetric=symmetric), inputs().requires_grad_()
    slope = torch.randn(3, 10, ROWS, generator=torch.Generator().manual_seed(3))
    linear = FrozenGroups(weight, torch.zeros(ROWS))
    (linear(x) * slope).sum().backward()
    of_scale, of_zero, of_inputs = plain_gradients(weight, x.detach(), slope)
    there = weight.codes.view(ROWS, -1, SIZE).ne(0).any(2)
    pairs = [(linear.scale.grad, of_scale[there]), (x.grad, of_inputs)]
    if linear.zero is not None:
        pairs.append((linear.zero.grad, of_zero[there]))
    for made, expected in pairs:
        assert made is not None
        np.testing.assert_allclose(
            made.flatten().numpy(), expected.flatten().numpy(), rtol=0, atol=1e-5 * float(expected.abs().max())
        )


def test_slopes_of_frozen_codes_are_those_of_finite_differences() -> None:
    weight, x = start(), inputs()
    linear = FrozenGroups(weight, None)
    target = torch.randn(3, 10, ROWS, generator=torch.Generator().manual_seed(3))

    def loss() -> Tensor:
        return (linear(x) - target).square().sum()

    loss().backward()
    assert linear.scale.grad is not None and linear.zero is not None and linear.zero.grad is not None
    with torch.no_grad():
        for parameter, step in ((linear.scale, 2.0**-4), (linear.zero, 1.0)):
            for place in (0, 7):
                slope, own = float(parameter.grad[place]), float(parameter[place])  # type: ignore[index]
                if parameter is linear.scale:  # a step that bfloat16 has in both directions
                    step = 2.0 ** (math.floor(math.log2(own)) - 5)
                if parameter is linear.zero and not 0 < own < 15:
                    continue
                found = []
                for sign in (1, -1):
                    parameter[place] = own + sign * step
                    found.append(float(loss()))
                parameter[place] = own
                assert slope == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-3)  # a parabola


def test_in_half_precision_slopes_stay_near() -> None:
    """Products in bfloat16: 2⁻⁸ each, evenly up and down; the weight is not kept for the way back."""
    weight, x = start(), inputs().requires_grad_()
    linear = FrozenGroups(weight, None)
    slope = torch.randn(3, 10, ROWS, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        made = linear(x)
        assert made.dtype == torch.bfloat16
        (made.float() * slope).sum().backward()
    of_scale, _, of_inputs = plain_gradients(weight, x.detach(), slope)
    there = weight.codes.view(ROWS, -1, SIZE).ne(0).any(2)
    assert linear.scale.grad is not None and linear.scale.grad.dtype == torch.float32 and x.grad is not None
    for made, expected in ((linear.scale.grad[:, 0], of_scale[there]), (x.grad, of_inputs)):
        assert float((made - expected).norm() / expected.norm()) < 0.02


@SYMMETRIC
@BITS
def test_slopes_pass_the_rounding_and_stop_at_the_ends_of_the_range(bits: int, symmetric: bool) -> None:
    """W = (clamp(round(w / s) + z) - z) s with the rounding straight through: inside, dW/dw = 1, dW/ds = code - w / s
    and dW/dz = 0; where the code is clamped 0, code and -s."""
    weight = start(bits, symmetric=symmetric)
    linear, x = TrainedGroups(weight, None), inputs()
    noise = torch.randn(linear.latent.shape, generator=torch.Generator().manual_seed(4))
    linear.latent.data += noise * linear.scale * {4: 2, 8: 30}[bits]
    slope = torch.randn(3, 10, ROWS, generator=torch.Generator().manual_seed(3))
    (linear(x) * slope).sum().backward()
    flat = (slope.double().flatten(0, 1).T @ x.double().flatten(0, 1)).view(-1, SIZE)[linear.groups].numpy()
    latent, scale = linear.latent.detach().double().numpy(), linear.scale.detach().double().numpy()
    zero = np.full_like(scale, weight.scheme.middle) if linear.zero is None else linear.zero.detach().double().numpy()
    exact = latent / scale
    inside = (np.rint(exact) + zero >= 0) & (np.rint(exact) + zero <= weight.scheme.top)
    assert 0.02 < 1 - inside.mean() < 0.8
    codes = np.clip(np.rint(exact) + zero, 0, weight.scheme.top) - zero
    expected = {
        "latent": flat * inside,
        "scale": (flat * np.where(inside, codes - exact, codes)).sum(1, keepdims=True),
        "zero": (flat * np.where(inside, 0, -scale)).sum(1, keepdims=True),
    }
    for name, made in (("latent", linear.latent), ("scale", linear.scale), ("zero", linear.zero)):
        if made is not None:
            assert made.grad is not None
            atol = 1e-4 * np.abs(expected[name]).max()
            np.testing.assert_allclose(made.grad.double().numpy(), expected[name], rtol=0, atol=atol)


@SYMMETRIC
@BITS
@STAGES
def test_what_trains_and_what_does_not(stage: type[GroupTrainable], bits: int, symmetric: bool) -> None:
    """Hundreds of large steps by the loop itself: absent groups stay zero, frozen codes as they are, zero points
    integers of the range, and the forward pass is that of what would be stored."""
    weight, x = start(bits, symmetric=symmetric), inputs()
    linear = stage(weight, None)
    target = nn.functional.linear(x, torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5)))

    def loss(windows: Tensor) -> Tensor:
        return (linear(x[windows]) - target[windows]).square().mean()

    every = torch.arange(3)
    curve = train(linear.trained, loss, every, every, Schedule(40, 0.05, batch=1))
    assert curve.losses[curve.best] < 0.9 * curve.losses[0] and curve.best
    made = linear.weight()
    there = weight.codes.view(ROWS, -1, SIZE).ne(0).any(2)
    absent = (~there).repeat_interleave(PATTERN.size, 1)
    assert not made.codes[absent].any()
    assert (made.scale[~there] == 1).all() and not torch.equal(made.scale[there], weight.scale[there])
    assert made.scale.dtype == torch.bfloat16 and float(made.scale.min()) > 0
    assert int(stored(made).min()) >= 0 and int(stored(made).max()) <= weight.scheme.top
    if made.zero is not None and weight.zero is not None:
        assert (made.zero[~there] == weight.scheme.middle).all() and not torch.equal(made.zero, weight.zero)
    if stage is FrozenGroups:
        assert torch.equal(stored(made)[~absent], stored(weight)[~absent])
    else:
        assert not torch.equal(stored(made), stored(weight))
    assert torch.equal(linear(x), nn.functional.linear(x, made.dequantize()))


@STAGES
def test_wherever_zero_points_go_they_are_stored_as_integers_in_range(stage: type[GroupTrainable]) -> None:
    weight, x = start(), inputs()
    linear = stage(weight, None)
    assert linear.zero is not None
    linear.zero.data = torch.linspace(-9, 25, len(linear.zero))[:, None]
    linear.scale.data[::3] = -1.0  # no weight may change its sign by its scale
    made = linear.weight()
    there = weight.codes.view(ROWS, -1, SIZE).ne(0).any(2)
    assert made.zero is not None and made.zero[there].tolist() == linear.zero.clamp(0, 15).round()[:, 0].tolist()
    assert float(made.scale.min()) > 0
    assert int(stored(made).min()) >= 0 and int(stored(made).max()) <= 15
    assert torch.equal(linear(x), nn.functional.linear(x, made.dequantize()))


def test_weights_do_not_decay() -> None:
    """A loss without slope moves nothing: neither weights nor grids shrink by themselves."""
    weight = start()
    linear = TrainedGroups(weight, None)
    x = inputs()
    train(
        linear.trained, lambda windows: linear(x[windows]).sum() * 0, torch.arange(3), torch.arange(3), Schedule(5, 0.1)
    )
    assert_same(linear.weight(), weight)
    assert torch.equal(linear.latent, TrainedGroups(weight, None).latent)


@STAGES
def test_training_that_does_not_help_leaves_the_very_start(stage: type[GroupTrainable]) -> None:
    """Fitted windows pull away from what held-out ones have already."""
    weight, x = start(), inputs()
    linear = stage(weight, None)
    target = linear(x).detach()
    target[0] *= -1
    fitted, held = torch.arange(1), torch.arange(1, 3)

    def loss(windows: Tensor) -> Tensor:
        return (linear(x[windows]) - target[windows]).square().mean()

    curve = train(linear.trained, loss, fitted, held, Schedule(6, 0.05, retries=1, patience=2))
    assert curve.best == 0 and curve.losses[0] == 0 and min(curve.losses[1:]) > 0
    assert_same(linear.weight(), weight)
    for (made, _), (before, _) in zip(linear.trained, stage(weight, None).trained, strict=True):
        assert torch.equal(made, before)


def test_linears_are_put_in_place_by_kind_and_stage() -> None:
    parent = nn.ModuleDict({name: nn.Linear(COLUMNS, ROWS) for name in "abc"})
    biases = {name: parent.get_submodule(name).bias for name in "abc"}
    masked = start().dequantize()
    weights = {"a": start(), "b": start(8, symmetric=True), "c": INT8.quantize(masked)}
    for frozen, stage in ((False, TrainedGroups), (True, FrozenGroups)):
        made = make_trainable(parent, Compressed(weights, fixed_zeros={"b", "c"}), frozen=frozen)
        for name in "ab":
            linear = made[name]
            assert isinstance(linear, GroupTrainable) and (linear.mask is None) == (name == "a")
        assert {name: type(linear) for name, linear in made.items()} == {"a": stage, "b": stage, "c": SurvivorLinear}
        assert all(made[name].bias is biases[name] and parent.get_submodule(name) is made[name] for name in "abc")
        assert len(trained_of(made)) == (6 if stage is TrainedGroups else 4)


@SYMMETRIC
@BITS
@STAGES
def test_zeros_of_two_in_l_stay_zeros(stage: type[GroupTrainable], bits: int, symmetric: bool) -> None:
    """Where single weights were pruned, zero points that move must not wake them, and scales not learn from them."""
    dense = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    keep = BlockPattern(8).select(dense.abs())
    weight, x = scheme_of(bits, SIZE, symmetric=symmetric).quantize(dense * keep), inputs()
    linear, plain = stage(weight, None, fixed_zeros=True), stage(weight, None)
    assert torch.equal(linear(x), plain(x)) and torch.equal(linear.weight().codes, weight.codes)
    gone = weight.codes == 0
    within = weight.dequantize()[~gone]
    sizes = {id(parameter): size for parameter, size in linear.trained}
    if isinstance(linear, TrainedGroups):
        assert sizes[id(linear.latent)] == pytest.approx(float(within.square().mean()) ** 0.5)
    slope = torch.randn(3, 10, ROWS, generator=torch.Generator().manual_seed(3))
    (linear(x) * slope).sum().backward()
    flat = (slope.flatten(0, 1).T @ x.flatten(0, 1)).masked_fill(gone, 0).view(-1, SIZE)
    if stage is FrozenGroups and linear.zero is not None:
        assert linear.zero.grad is not None
        expected = -flat.sum(1, keepdim=True) * linear.scale.detach()
        torch.testing.assert_close(linear.zero.grad, expected, rtol=1e-4, atol=1e-4)
    target = nn.functional.linear(x, torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(5)))
    every = torch.arange(3)
    linear.zero_grad()
    curve = train(
        linear.trained,
        lambda windows: (linear(x[windows]) - target[windows]).square().mean(),
        every,
        every,
        Schedule(20, 0.05, batch=1),
    )
    made = linear.weight()
    assert curve.best and not made.codes[gone].any()
    assert symmetric or (made.zero is not None and weight.zero is not None and not torch.equal(made.zero, weight.zero))
    assert int(stored(made).min()) >= 0 and int(stored(made).max()) <= weight.scheme.top
    assert torch.equal(linear(x), nn.functional.linear(x, made.dequantize()))


def test_a_linear_of_which_nothing_is_left() -> None:
    weight = scheme_of(4, 8, symmetric=False).quantize(torch.zeros(4, 16))
    for stage in (TrainedGroups, FrozenGroups):
        linear = stage(weight, None)
        assert not linear(torch.ones(2, 16)).any() and not linear.weight().codes.any()
