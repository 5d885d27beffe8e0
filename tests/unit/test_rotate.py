"""Rotations as functions: the objective against its twin, its gradient, the descent, and the bounds of verification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.core.patterns import BlockPattern
from slideconvert.models.architecture import HEADS
from slideconvert.models.families import FAMILIES
from slideconvert.rotate.check import orthogonality_faults, rounding_bound
from slideconvert.rotate.descent import OrthogonalAdam
from slideconvert.rotate.objective import InputGroup, inverse_for, linear_losses
from slideconvert.rotate.rotations import RESIDUAL, Rotations, Sides, for_readers, rotate_linear, sides_of
from tests.helpers.correlated import layer
from tests.twins.rotate import block_diagonal, descended, estimated_loss

SIDES = {
    "reads the stream": Sides(RESIDUAL, ""),
    "reads the stream, writes values": Sides(RESIDUAL, HEADS),
    "reads values, writes the stream": Sides(HEADS, RESIDUAL),
    "writes the stream": Sides("", RESIDUAL),
}
HIDDEN, KEY_VALUE, READERS = 24, 2, 4


def orthogonal(*shape: int, seed: int = 0) -> Tensor:
    """Random rotations [..., size, size] float64."""
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(made).Q


def rotations(size: int = 6) -> dict[str, Tensor]:
    return {RESIDUAL: orthogonal(1, HIDDEN, HIDDEN), HEADS: orthogonal(KEY_VALUE, size, size, seed=1)}


def whole(blocks: Tensor | None, columns: int) -> np.ndarray:
    """Of so many channels, as one matrix."""
    if blocks is None:
        return np.eye(columns)
    return block_diagonal([block.numpy() for block in blocks for _ in range(columns // blocks.shape[0] // len(block))])


def problem(sides: Sides, rows: int, columns: int, blocks: dict[str, Tensor]) -> tuple[InputGroup, np.ndarray]:
    """A linear whose inputs correlate, and the Gram matrix of these, float64."""
    made = layer(rows, columns)
    gram = (made.inputs.double().T @ made.inputs.double() / len(made.inputs)).float()
    reads = for_readers(blocks[sides.reads], columns) if sides.reads else None
    energy = ((made.weight @ gram) * made.weight).sum(dtype=torch.float64)
    return InputGroup({"it": made.weight}, inverse_for(gram, reads), energy[None]), gram.double().numpy()


@pytest.mark.parametrize("length", [4, 6, 8])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_the_estimated_loss_is_that_of_the_twin(sides: Sides, length: int) -> None:
    blocks = rotations()
    rows = {RESIDUAL: HIDDEN, HEADS: 12, "": 10}[sides.writes]
    columns = HIDDEN if sides.reads else 22  # a ragged last block
    linear, gram = problem(sides, rows, columns, blocks)
    narrow = {name: rotation.float() for name, rotation in blocks.items()}
    (found,) = linear_losses([linear], {"it": sides}, narrow, BlockPattern(length))
    reads = whole(blocks.get(sides.reads), columns)
    writes = whole(blocks.get(sides.writes), rows)
    wanted = estimated_loss(linear.weights["it"].double().numpy(), gram, reads, writes, length)
    # Sums of hundreds of float32 terms, each of a relative error of some 2^-24 times the condition of H, below 100.
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_linears_of_a_layer_do_not_disturb_each_other() -> None:
    """Those with rows of one length are selected at once; here two of 24 columns, with one of 22 between them."""
    blocks, names = rotations(), ("reads the stream", "writes the stream", "reads values, writes the stream")
    narrow = {name: rotation.float() for name, rotation in blocks.items()}
    sides = {name: SIDES[name] for name in names}
    shapes = [(10, HIDDEN), (HIDDEN, 22), (HIDDEN, HIDDEN)]
    groups = []
    for own, shape in zip(sides.items(), shapes, strict=True):
        made, _ = problem(own[1], *shape, blocks)
        groups.append(InputGroup({own[0]: made.weights["it"]}, made.inverse, made.energies))
    groups[1] = InputGroup(groups[1].weights, groups[1].inverse, torch.zeros(1, dtype=torch.float64))
    found = linear_losses(groups, sides, narrow, BlockPattern(4))
    alone = [linear_losses([group], sides, narrow, BlockPattern(4)) for group in groups]
    assert torch.equal(found, torch.cat(alone))
    assert [bool(loss > 0) for loss in found] == [True, False, True], "one without output loses nothing"


def test_a_fused_linear_turns_its_last_rows_alone() -> None:
    blocks = {HEADS: orthogonal(2, 4, 4)}
    weight = torch.randn(20, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = rotate_linear(weight, Sides(RESIDUAL, HEADS), blocks)
    assert torch.equal(turned[:12], weight[:12])
    assert torch.allclose(turned[12:], torch.block_diag(*blocks[HEADS]).T @ weight[12:])


def test_the_gradient_is_that_of_the_loss() -> None:
    """By differences, along a curve of rotations, where no weight changes between pruned and kept."""
    sides, pattern = SIDES["reads the stream, writes values"], BlockPattern(4)
    blocks = rotations()
    linear, _ = problem(sides, 12, HIDDEN, blocks)
    wide = InputGroup({"it": linear.weights["it"].double()}, linear.inverse.double(), linear.energies)
    direction = torch.randn(1, HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direction = direction - direction.mT

    def loss(angle: float, start: Tensor) -> Tensor:
        turned = start @ torch.linalg.matrix_exp(angle * direction)
        with pytest.MonkeyPatch.context() as patch:  # selection takes float32 scores
            select = BlockPattern.select
            patch.setattr(BlockPattern, "select", lambda self, score: select(self, score.float()))
            return linear_losses([wide], {"it": sides}, {**blocks, RESIDUAL: turned}, pattern)[0]

    start = blocks[RESIDUAL].clone().requires_grad_()
    loss(0.0, start).backward()
    assert start.grad is not None
    slope = float((start.grad * (blocks[RESIDUAL] @ direction)).sum())
    near = 1e-6
    measured = float(loss(near, blocks[RESIDUAL]) - loss(-near, blocks[RESIDUAL])) / (2 * near)
    assert slope == pytest.approx(measured, rel=1e-5) and abs(slope) > 1e-4


def test_the_descent_finds_a_rotation_and_stays_orthogonal() -> None:
    """The nearest rotation to a known one, whose distance has one minimum."""
    wanted = torch.linalg.matrix_exp((made := orthogonal(3, 8, 8) * 0.2) - made.mT)
    descent = OrthogonalAdam(torch.eye(8, dtype=torch.float64).repeat(3, 1, 1), rate=0.1, steps=150)
    for number in range(150):
        descent.step(number, descent.rotation - wanted)
    assert float((descent.rotation - wanted).abs().amax()) < 1e-3
    off = descent.rotation.mT @ descent.rotation - torch.eye(8, dtype=torch.float64)
    assert float(off.abs().amax()) < 1e-12


def test_rotations_that_descend_together_descend_as_each_alone() -> None:
    """Float64 in two orders of sums, over 40 steps that let errors of 1e-16 grow: by far less than 1e4."""
    start, steps = orthogonal(5, 8, 8), 40
    gradients = torch.randn(steps, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    together = OrthogonalAdam(start, rate=0.4, steps=steps)
    for number, gradient in enumerate(gradients):
        together.step(number, gradient)
    for one, found in enumerate(together.rotation):
        wanted = descended(start[one].numpy(), [gradient[one].numpy() for gradient in gradients], 0.4, steps)
        assert np.abs(found.numpy() - wanted).max() < 1e-12
    assert float((together.rotation - start).abs().amax()) > 0.1


def test_a_restored_descent_goes_on_as_the_first_one() -> None:
    gradient = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    runs = [OrthogonalAdam(orthogonal(2, 6, 6), rate=0.1, steps=9) for _ in range(2)]
    for number in range(4):
        runs[0].step(number, gradient * number)
    runs[1].restore(runs[0].state)
    for run in runs:
        for number in range(4, 9):
            run.step(number, gradient * number)
    assert torch.equal(runs[0].rotation, runs[1].rotation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_bound_is_reached_and_not_passed(dtype: torch.dtype) -> None:
    """By roundings of many sizes, subnormal ones too; a unit in the last place more is caught."""
    info = torch.finfo(dtype)
    exact = torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    exact *= torch.exp2(torch.linspace(-12, 12, 20000, dtype=torch.float64))
    exact[:50] = info.tiny * info.eps * torch.linspace(0.3, 7, 50, dtype=torch.float64)
    off, bound = (exact.to(dtype).double() - exact).abs(), rounding_bound(exact, dtype)
    assert bool((off <= bound).all())
    assert float((off / bound).amax()) > 0.99
    up = torch.nextafter(exact.to(dtype), torch.tensor(torch.inf, dtype=dtype)).double()
    further = (up - exact).abs() > bound * (1 + 1e-3)
    assert float(further.double().mean()) > 0.98  # all but those about half way between two numbers


def test_what_is_not_orthogonal_is_named() -> None:
    sound = Rotations(orthogonal(1, 32, 32).float(), (orthogonal(2, 8, 8).float(), orthogonal(2, 8, 8).float()))
    assert not list(orthogonality_faults(sound))
    bent = sound.heads[1].clone()
    bent[1, 3, 4] += 1e-5
    faults = list(orthogonality_faults(Rotations(sound.residual, (sound.heads[0], bent))))
    assert len(faults) == 1 and "layers.1.heads" in faults[0]
    broken = torch.full_like(bent, torch.nan)
    assert list(orthogonality_faults(Rotations(sound.residual, (sound.heads[0], broken))))


def test_every_linear_of_every_family_has_its_sides() -> None:
    for name, family in FAMILIES.items():
        sides = sides_of(family)
        assert sides.keys() == set(family.linears), name
        reads = {submodule for submodule, own in sides.items() if own.reads == RESIDUAL}
        assert reads == {*family.attention[0], *family.mlp[0]}, name
        assert {own.norm for own in sides.values()} - {""} == set(family.residual_norms or ()), name
