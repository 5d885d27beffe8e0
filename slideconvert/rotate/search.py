"""The search for the rotations of a model with the least estimated pruning loss."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint.staging import write_file, writing
from ..core.patterns import BlockPattern
from ..core.precision import full_precision
from ..models.architecture import HEADS
from ..progress import Progress
from .descent import OrthogonalAdam
from .gradient import LossGradient
from .objective import linear_losses
from .problems import Problems
from .rotations import RESIDUAL, Blocks, Rotations

ANGLE = 1.6
"""Of the first step: its rate is ANGLE / √size, so that rotations of every size turn about as far, in radians."""
SAVED = 25
"""Steps between two saved states."""
STATE = "descent.safetensors"
LAYOUT = "2"
"""Of the saved state. In the first one, without a number, the heads of each layer had a descent of their own."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """What is minimized, the loss of pruning to `pattern`, and in how many steps."""

    pattern: BlockPattern
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
    descents = Descents(start, goal.steps, device)
    done = _restore(folder / STATE, descents)
    before = _losses(problems, start.to(torch.float32, device), goal.pattern)
    with full_precision():
        _descend(problems, descents, goal, done, folder, progress)
    found = descents.present(torch.float32)
    return Found(found.to(torch.float32), before, _losses(problems, found, goal.pattern))


class Descents:
    """The descents of all rotations from `start`: that of the residual stream, if it is rotated, and one for the heads
    of all layers at once.

    state: everything that a continued search needs, by name.
    """

    def __init__(self, start: Rotations, steps: int, device: str) -> None:
        self._layers = len(start.heads)
        every = {HEADS: torch.cat(start.heads)}
        if start.residual is not None:
            every[RESIDUAL] = start.residual
        self._of = {
            name: OrthogonalAdam(blocks.to(device, torch.float64), rate=ANGLE / blocks.shape[-1] ** 0.5, steps=steps)
            for name, blocks in every.items()
        }

    @property
    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{part}": it for name, descent in self._of.items() for part, it in descent.state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state` of a search that was interrupted."""
        for name, descent in self._of.items():
            descent.restore({part: state[f"{name}.{part}"] for part in descent.state})

    def present(self, dtype: torch.dtype) -> Rotations:
        """The present rotations. Steps do not change them unless they are float64."""
        now = {name: descent.rotation.to(dtype) for name, descent in self._of.items()}
        return Rotations(now.get(RESIDUAL), now[HEADS].unflatten(0, (self._layers, -1)).unbind())

    def step(self, number: int, gradient: Blocks) -> None:
        """Step `number`, from 0 on, for the `LossGradient` at the present rotations."""
        for name, descent in self._of.items():
            descent.step(number, gradient[name])


def _descend(problems: Problems, descents: Descents, goal: Goal, done: int, folder: Path, progress: Progress) -> None:
    """The steps from number `done` on. A GPU is waited for only where a state is saved."""
    gradient = LossGradient(problems, goal.pattern, descents.present(torch.float32))
    for step in range(done, goal.steps):
        progress("rotate", step, goal.steps)
        descents.step(step, gradient.at(descents.present(torch.float32)))
        if (step + 1) % SAVED == 0 or step + 1 == goal.steps:
            _save(folder, step + 1, descents)
    progress("rotate", goal.steps, goal.steps)


@torch.no_grad()
def _losses(problems: Problems, rotations: Rotations, pattern: BlockPattern) -> tuple[float, ...]:
    """The mean loss of the linears of each layer."""
    with full_precision():
        every = [
            linear_losses(problems[number], problems.sides, rotations.layer(number), pattern).mean()
            for number in range(len(problems))
        ]
        return tuple(torch.stack(every).tolist())


def _save(folder: Path, done: int, descents: Descents) -> None:
    tensors = {name: tensor.cpu() for name, tensor in descents.state.items()}
    with writing(folder):
        write_file(folder / STATE, save(tensors, {"done": json.dumps(done), "layout": LAYOUT}))


def _restore(path: Path, descents: Descents) -> int:
    """Restore a saved state; return the number of its steps, 0 without one of the present layout."""
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        told = file.metadata()
        if told.get("layout") != LAYOUT:
            logger.warning(
                "%s is of another version of slideconvert: the search starts again, %s steps are lost",
                path.name,
                told.get("done"),
            )
            return 0
        descents.restore({name: file.get_tensor(name) for name in descents.state})
        return int(json.loads(told["done"]))
