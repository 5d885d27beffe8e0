"""The gradient of the loss of a whole model for its rotations.

A layer's losses and their gradient take hundreds of kernels, which a small model's layer gives a few microseconds of
work each: a GPU repeats them as a CUDA graph (core/captured.py), the same one for all layers, which have the same
shapes. Layers that are too large for that keep the GPU busy anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..core.captured import Captured
from ..core.patterns import BlockPattern
from ..models.architecture import HEADS
from .objective import InputGroup, linear_losses
from .problems import Problems
from .rotations import RESIDUAL, Blocks, Rotations, Sides


class LossGradient:
    """The gradient of the summed loss of all layers, for rotations like `start`, on its device.

    Nothing waits for the device once the problems are there.
    """

    def __init__(self, problems: Problems, pattern: BlockPattern, start: Rotations) -> None:
        self._problems = problems
        # Of the residual stream the sum over the layers so far, of the heads that of the last layer.
        self._layer = {name: torch.zeros_like(blocks, dtype=torch.float32) for name, blocks in start.layer(0).items()}
        self._heads = torch.stack([self._layer[HEADS]] * len(problems))
        # Not a method: a graph that referred to itself would keep its memory until Python looks for cycles.
        self._add = Captured(partial(_add_layer, problems.sides, tuple(problems.groups.values()), pattern, self._layer))

    def at(self, present: Rotations) -> Blocks:
        """The gradient at float32 rotations: RESIDUAL [1, hidden, hidden], where it is rotated, and HEADS [layers ·
        key-value heads, head_dim, head_dim], float32. The next call overwrites it."""
        if RESIDUAL in self._layer:
            self._layer[RESIDUAL].zero_()
        for number, heads in enumerate(self._heads):
            tensors = [tensor for group in self._problems[number] for tensor in group.tensors]
            self._add(*present.layer(number).values(), *tensors)
            heads.copy_(self._layer[HEADS])
        return {**self._layer, HEADS: self._heads.flatten(0, 1)}


def _add_layer(
    sides: Mapping[str, Sides],
    groups: Sequence[Sequence[str]],
    pattern: BlockPattern,
    gradient: Blocks,
    *inputs: Tensor,
) -> None:
    """Add the gradient of a layer's loss for the residual rotation to `gradient`, and set that for the heads there.

    inputs: the layer's rotations, in the order of `gradient`, then the tensors of its input groups.
    """
    given = iter(inputs)
    leaves = {name: next(given).detach().requires_grad_() for name in gradient}
    problem = [InputGroup.from_tensors(submodules, given) for submodules in groups]
    losses = linear_losses(problem, sides, leaves, pattern)
    found = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values())), strict=True))
    if RESIDUAL in found:
        gradient[RESIDUAL].add_(found[RESIDUAL])
    gradient[HEADS].copy_(found[HEADS])
