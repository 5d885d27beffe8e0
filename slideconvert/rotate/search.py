"""The search for the rotations of a model with the least estimated pruning loss."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint.staging import write_file, writing
from ..core.patterns import Pattern
from ..core.precision import full_precision
from ..progress import Progress
from .descent import OrthogonalAdam
from .objective import linear_losses
from .problems import Problems
from .rotations import RESIDUAL, Rotations

ANGLE = 1.6
"""Of the first step: its rate is ANGLE / √size, so that rotations of every size turn about as far, in radians."""
SAVED = 25
"""Steps between two saved states."""
STATE = "descent.safetensors"


@dataclass(frozen=True)
class Goal:
    """What is minimized, the loss of pruning to `pattern`, and in how many steps."""

    pattern: Pattern
    steps: int


@dataclass(frozen=True)
class Found:
    """The result of a search. before, after: the estimated loss by layer, relative to the energy of the outputs, the
    mean over the linears of the layer that rotations change."""

    rotations: Rotations
    before: tuple[float, ...]
    after: tuple[float, ...]


def search(problems: Problems, start: Rotations, goal: Goal, device: str, folder: Path, progress: Progress) -> Found:
    """Minimize the loss of all layers from the rotations `start`. folder: for the state from which an interrupted
    search continues to the same result."""
    pattern, steps = goal.pattern, goal.steps
    descents = _descents(start, steps, device)
    done = _restore(folder / STATE, descents)
    before = _losses(problems, start.to(torch.float32, device), pattern)
    with full_precision():
        for step in range(done, steps):
            progress("rotate", step, steps)
            gradients = _gradients(problems, _present(descents, len(problems)), pattern)
            for name, descent in descents.items():
                descent.step(step, gradients[name])
            if (step + 1) % SAVED == 0 or step + 1 == steps:
                _save(folder, step + 1, descents)
    progress("rotate", steps, steps)
    found = _present(descents, len(problems))
    return Found(found.to(torch.float32), before, _losses(problems, found.to(torch.float32, device), pattern))


def _descents(start: Rotations, steps: int, device: str) -> dict[str, OrthogonalAdam]:
    """A descent for every rotation, by RESIDUAL or the number of the layer."""
    every = {str(number): blocks for number, blocks in enumerate(start.heads)}
    if start.residual is not None:
        every[RESIDUAL] = start.residual
    return {
        name: OrthogonalAdam(blocks.to(device, torch.float64), rate=ANGLE / blocks.shape[-1] ** 0.5, steps=steps)
        for name, blocks in every.items()
    }


def _present(descents: dict[str, OrthogonalAdam], layers: int) -> Rotations:
    """The present rotations, float64."""
    residual = descents[RESIDUAL].rotation if RESIDUAL in descents else None
    return Rotations(residual, tuple(descents[str(number)].rotation for number in range(layers)))


def _gradients(problems: Problems, present: Rotations, pattern: Pattern) -> dict[str, Tensor]:
    """The gradient of the summed loss for every rotation. One layer at a time is in the graph."""
    leaves = present.to(torch.float32, present.heads[0].device)
    for blocks in (*leaves.heads, *([] if leaves.residual is None else [leaves.residual])):
        blocks.requires_grad_()
    for number in range(len(problems)):
        losses = linear_losses(problems[number], problems.sides, leaves.layer(number), pattern)
        torch.stack(list(losses.values())).sum().backward()
    found = {str(number): blocks.grad for number, blocks in enumerate(leaves.heads)}
    if leaves.residual is not None:
        found[RESIDUAL] = leaves.residual.grad
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@torch.no_grad()
def _losses(problems: Problems, rotations: Rotations, pattern: Pattern) -> tuple[float, ...]:
    """The mean loss of the linears of each layer."""
    with full_precision():
        every = (
            linear_losses(problems[number], problems.sides, rotations.layer(number), pattern).values()
            for number in range(len(problems))
        )
        return tuple(float(torch.stack(list(losses)).mean()) for losses in every)


def _save(folder: Path, done: int, descents: dict[str, OrthogonalAdam]) -> None:
    tensors = {
        f"{name}.{part}": tensor.cpu() for name, descent in descents.items() for part, tensor in descent.state.items()
    }
    with writing(folder):
        write_file(folder / STATE, save(tensors, {"done": json.dumps(done)}))


def _restore(path: Path, descents: dict[str, OrthogonalAdam]) -> int:
    """Restore a saved state; return the number of its steps, 0 without one."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        for name, descent in descents.items():
            descent.restore({part: file.get_tensor(f"{name}.{part}") for part in descent.state})
        return int(json.loads(file.metadata()["done"]))
