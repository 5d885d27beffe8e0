"""The grid of a group of weights, and the codes on it: against the twin, and the laws that both must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideconvert.core.quantize import Grid, QuantizedWeight
from slideconvert.core.schemes import GROUP_SIZES, SCHEMES, Scheme
from slideconvert.core.weights import floats
from slideconvert.errors import InputError
from slideconvert.permute.permutations import move
from tests.helpers.matrices import examples
from tests.twins import groups as twin

SLACK = 1 + 2**-16
"""Float32 rounding of w / scale and code * scale: each below 2⁻²³ of at most 255."""
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
BITS = pytest.mark.parametrize("bits", [4, 8])
GROUPED = {name: scheme for name, scheme in SCHEMES.items() if scheme.grouped}


def scheme_of(bits: int, size: int, *, symmetric: bool) -> Scheme:
    return SCHEMES[{4: "w4a16", 8: "w8a16"}[bits]].in_groups(size, symmetric=symmetric)


def rows_of_kinds(size: int, seed: int = 0) -> NDArray[np.float32]:
    """A row of three groups for each kind that bites."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=3 * size)
    rows = {
        "both signs": plain,
        "positive": np.abs(plain) + 0.1,
        "negative": -np.abs(plain) - 0.1,
        "far from zero": 7 + 0.01 * plain,
        "one outlier": np.where(np.arange(3 * size) % size, plain, -50),
        "constant": np.repeat([0.3, -0.3, 2.0**-20], size),
        "zeros": np.zeros(3 * size),
        "negative zeros": np.where(np.arange(3 * size) < size, -0.0, plain),
        "one weight": np.where(np.arange(3 * size) % size == 1, [1.0, -1.0, 1e-3] * size, 0),
        "halves": np.resize(np.arange(-8, 8) / 2, 3 * size),
        "huge": 1e37 * plain,
        "tiny": 1e-36 * plain,
        "subnormal": 1e-41 * plain,
        "the smallest": np.where(np.arange(3 * size) % size, 0, 1e-45),
        "unlike": plain * np.repeat([1e-30, 1, 1e30], size),
    }
    return np.stack(list(rows.values())).astype(np.float32)


@SYMMETRIC
@BITS
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_grid_and_codes_are_the_twins(size: int, bits: int, symmetric: bool) -> None:
    weight = rows_of_kinds(size)
    made = scheme_of(bits, size, symmetric=symmetric).quantize(torch.from_numpy(weight))
    scale, zero = twin.grids(weight, size, bits, symmetric=symmetric)
    assert made.scale.dtype == torch.bfloat16
    np.testing.assert_array_equal(made.scale.float().numpy(), scale)
    if symmetric:
        assert made.zero is None and (zero == 2 ** (bits - 1)).all()
    else:
        assert made.zero is not None and made.zero.dtype == torch.uint8
        np.testing.assert_array_equal(made.zero.numpy(), zero)
    assert made.codes.dtype == (torch.int8 if bits == 4 else torch.int16)
    np.testing.assert_array_equal(made.codes.numpy(), twin.codes(weight, scale, zero, bits))


@st.composite
def weights(draw: st.DrawFn) -> NDArray[np.float32]:
    """Two rows of up to three groups: numbers of all sizes that do not overflow when a group's ends are subtracted."""
    size, across = draw(st.sampled_from(GROUP_SIZES[:4])), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    plain = rng.normal(size=(2, across, size)) * 10.0 ** draw(st.integers(-42, 37))
    plain += draw(st.sampled_from([0.0, 0.0, 5.0, -5.0])) * np.abs(plain).max()
    plain *= 10.0 ** rng.integers(-3, 1, size=(2, across, 1))
    plain *= rng.random(plain.shape) < draw(st.sampled_from([0.1, 0.7, 1.0]))
    return plain.reshape(2, -1).clip(-1.6e38, 1.6e38).astype(np.float32)


@given(weights(), st.sampled_from([4, 8]), st.booleans(), st.data())
@examples(300)
def test_laws_of_the_grid(weight: NDArray[np.float32], bits: int, symmetric: bool, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([size for size in GROUP_SIZES if weight.shape[1] % size == 0]))
    scheme = scheme_of(bits, size, symmetric=symmetric)
    made = scheme.quantize(torch.from_numpy(weight))
    stored = made.codes.int().numpy() + (
        scheme.middle if made.zero is None else made.zero.int().repeat_interleave(size, 1).numpy()
    )
    assert stored.min() >= 0 and stored.max() <= scheme.top
    scale = made.scale.double().repeat_interleave(size, 1).numpy()
    wide = weight.astype(np.float64)
    assert (np.abs(wide - made.codes.double().numpy() * scale) <= scale / 2 * SLACK).all()
    assert not made.codes[weight == 0].any(), "zero is exact"
    np.testing.assert_array_equal(made.dequantize().numpy(), (made.codes.numpy() * scale).astype(np.float32))
    # The scale: a bfloat16 not below the exact one, and its neighbour below is.
    groups = wide.reshape(2, -1, size)
    low, high = groups.min(2).clip(max=0), groups.max(2).clip(min=0)
    exact = np.maximum(high / (scheme.middle - 1), -low / scheme.middle) if symmetric else (high - low) / scheme.top
    exact, own = np.where(low == high, 1, exact.clip(min=2.0**-126)), made.scale.double().numpy()
    assert (own >= exact * (1 - 2**-22)).all()
    assert (own * (1 - 2**-7) <= exact * (1 + 2**-22)).all()
    assert made.zero is None or (made.zero.numpy()[low == high] == scheme.middle).all()


@pytest.mark.parametrize("name", GROUPED)
def test_words_of_the_schemes(name: str) -> None:
    scheme = GROUPED[name].in_groups(8, symmetric=False)
    assert (scheme.bits, scheme.activation_bits) == (int(name[1]), int(name[3:]))
    assert (scheme.top, scheme.middle) == {4: (15, 8), 8: (255, 128)}[scheme.bits]
    assert scheme.group == 8 and scheme.symmetric is False and GROUPED[name].group == 128
    weight = scheme.quantize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    group = scheme.config_group(["Linear"], "pack-quantized")
    assert group["weights"] == {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 8,
        "dynamic": False,
    }
    assert (group["input_activations"] is None) == (scheme.activation_bits == 16)
    assert weight.grid.scheme == scheme


@pytest.mark.parametrize("size", [-4, 0, 1, 2, 3, 12, 100, 256])
def test_sizes_of_groups(size: int) -> None:
    with pytest.raises(InputError, match=rf"group size {size} is not supported \(use one of 4, 8, 16, 32, 64, 128\)"):
        SCHEMES["w4a16"].in_groups(size, symmetric=True)


@SYMMETRIC
@BITS
def test_a_grid_may_be_shared_by_other_weights(bits: int, symmetric: bool) -> None:
    """Rounding saturates at both ends of the grid and leaves the weights that it is given alone."""
    scheme = scheme_of(bits, 4, symmetric=symmetric)
    grid = scheme.grid(torch.tensor([[-1.0, 0.5, 2.0, 0.1, 1.0, 1.0, 1.0, 1.0]]))
    others = torch.tensor([[-100.0, 100.0, 0.0, -0.0, -100.0, 100.0, 0.0, -0.0]])
    before = others.clone()
    made = grid.round(others)
    assert torch.equal(others, before)
    zero = [[scheme.middle] * 2] if grid.zero is None else grid.zero.tolist()
    assert zero[0] == ([scheme.middle] * 2 if symmetric else [{4: 5, 8: 85}[bits], 0])
    expected = [code for point in zero[0] for code in (-point, scheme.top - point, 0, 0)]
    assert made.codes.tolist() == [expected]
    assert isinstance(made, QuantizedWeight) and made.grid == Grid(scheme, grid.scale, grid.zero)


@SYMMETRIC
def test_rows_do_not_know_of_each_other(symmetric: bool) -> None:
    """More rows than are rounded at once."""
    weight = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    scheme = scheme_of(4, 16, symmetric=symmetric)
    whole, part = scheme.quantize(weight), scheme.quantize(weight[4321:4323])
    rows: Any = whole.grid.take_rows(slice(4321, 4323))
    assert torch.equal(whole.codes[4321:4323], part.codes) and torch.equal(rows.scale, part.scale)
    assert symmetric or torch.equal(rows.zero, part.zero)


@SYMMETRIC
@BITS
def test_rows_and_columns_that_move_keep_what_they_mean(bits: int, symmetric: bool) -> None:
    """Channels in another order: rows take scales and zero points along, columns leave their groups, and codes."""
    weight = scheme_of(bits, 8, symmetric=symmetric).quantize(torch.from_numpy(rows_of_kinds(8)))
    for dimension, count in enumerate(weight.codes.shape):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        moved = move(weight, order, dimension)
        assert torch.equal(floats(moved), weight.dequantize().index_select(dimension, order))
        if dimension == 1:
            assert isinstance(moved, torch.Tensor)
            continue
        assert isinstance(moved, QuantizedWeight)
        assert moved.zero is None if weight.zero is None else torch.equal(moved.zero, weight.zero[order])
