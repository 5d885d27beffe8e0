"""The state of a training after an epoch, in a file, so that an interrupted training resumes to the same result.

A safetensors file, written under a temporary name and renamed: an existing file is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint.staging import write_file, writing

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""The state of AdamW for a parameter."""


def save_state(
    path: Path,
    losses: Sequence[float],
    skipped: tuple[int, int],
    masters: Sequence[Tensor],
    best: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state. skipped: steps left out, in all and in a row. OutputError if the disk is full."""
    tensors: dict[str, Tensor] = {}
    for number, (master, found) in enumerate(zip(masters, best, strict=True)):
        tensors |= {f"{number}.now": master.detach(), f"{number}.best": found}
        state = optimizer.state.get(master, {})
        tensors |= {f"{number}.{moment}": state[moment] for moment in MOMENTS if moment in state}
    metadata = {"losses": json.dumps(list(losses)), "skipped": json.dumps(list(skipped))}
    with writing(path.parent):
        write_file(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata))


def load_state(
    path: Path, masters: Sequence[Tensor], best: list[Tensor], optimizer: torch.optim.Optimizer
) -> tuple[list[float], int, int]:
    """Restore parameters, their best state and the optimizer; return losses, and skipped steps in all and in a row."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for number, master in enumerate(masters):
        master.data.copy_(tensors[f"{number}.now"])
        best[number].copy_(tensors[f"{number}.best"])
        moments = {moment: tensors[f"{number}.{moment}"] for moment in MOMENTS if f"{number}.{moment}" in tensors}
        # AdamW keeps step counts on the CPU.
        optimizer.state[master] = {
            moment: tensor if moment == "step" else tensor.to(master.device) for moment, tensor in moments.items()
        }
    skipped, in_a_row = json.loads(metadata["skipped"])
    return json.loads(metadata["losses"]), skipped, in_a_row
