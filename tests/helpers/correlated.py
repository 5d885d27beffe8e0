"""Layers whose inputs correlate: what solvers and masks are compared with their twins on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.prune.statistics import Accumulator, Statistics
from slideconvert.prune.sweep import Damped, damp


class Layer(NamedTuple):
    """weight [rows, columns] float32, inputs [tokens, columns] float32 and their damped Gram matrix."""

    weight: Tensor
    inputs: Tensor
    damped: Damped

    @property
    def gram(self) -> NDArray[np.float64]:
        return self.damped.gram.double().numpy()

    @property
    def wide(self) -> NDArray[np.float64]:
        return self.weight.double().numpy()


def layer(rows: int, columns: int, seed: int = 0) -> Layer:
    """Inputs that correlate, one of them three times as large as the rest."""
    rng = np.random.default_rng(seed)
    mix = np.eye(columns) + rng.normal(size=(columns, columns)) / np.sqrt(2 * columns)
    inputs = rng.normal(size=(4 * columns, columns)) @ mix
    inputs[:, columns // 2] *= 3
    made = torch.from_numpy(inputs.astype(np.float32))
    weight = torch.from_numpy(rng.normal(size=(rows, columns)).astype(np.float32))
    return Layer(weight, made, damp(made.T @ made / len(made)))


def statistics(inputs: Tensor, dense: Tensor | None = None, *, held: int = 0) -> Statistics:
    """Of all tokens, the last `held` of them held out."""
    parts = []
    for part in (slice(len(inputs) - held, None), slice(len(inputs) - held)):
        collected = Accumulator(inputs.shape[1], inputs.device, cross=dense is not None)
        collected.add(inputs[part], None if dense is None else dense[part])
        parts.append(collected)
    return parts[1].statistics(parts[0].statistics() if held else None)
