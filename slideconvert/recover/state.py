"""The state of a training after an epoch, in a file, so that an interrupted training resumes to the same result.

A safetensors file, written tensor by tensor under a temporary name and renamed: an existing file is complete, and no
second copy of the state is in memory. The best state is in it only if it is not the present one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoint.container import TensorSpec, header_bytes
from ..checkpoint.staging import replacing, writing
from ..errors import InputError
from .adam import COUNT, MOMENTS, Adam

NOW = ".now"


def save_state(
    path: Path,
    losses: Sequence[float],
    skipped: tuple[int, int],
    parameters: Sequence[Tensor],
    best: Sequence[Tensor] | None,
    optimizers: Sequence[Adam],
) -> None:
    """Write the state; all tensors are float32. skipped: steps left out, in all and in a row. best: None if it is the
    present state. OutputError if the disk is full."""
    tensors = dict(_named(parameters, best, optimizers))
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    head = header_bytes(specs, {"losses": json.dumps(list(losses)), "skipped": json.dumps(list(skipped))})
    with writing(path.parent), replacing(path) as file:
        file.write(head)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).numpy().data)


def load_state(
    path: Path, parameters: Sequence[Tensor], best: Sequence[Tensor], optimizers: Sequence[Adam]
) -> tuple[list[float], int, int]:
    """Restore parameters, their best state and the optimizers; return losses, and skipped steps in all and in a row.

    InputError for a state of other parameters."""
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        shapes = [tuple(file.get_slice(name).get_shape()) for name in sorted(names, key=_number) if name.endswith(NOW)]
        if shapes != [tuple(parameter.shape) for parameter in parameters]:
            raise InputError(
                f"{path}: the state of a training of other parameters ({len(shapes)}, now {len(parameters)})",
                hint="another version of slideconvert wrote it: delete this file, and the training starts again",
            )
        for number, (parameter, found, optimizer) in enumerate(zip(parameters, best, optimizers, strict=True)):
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"{number}{NOW}"))
            known = f"{number}.best"
            found.copy_(file.get_tensor(known if known in names else f"{number}{NOW}"))
            parts = {part: f"{number}.{part}" for part in (*MOMENTS, COUNT)}
            optimizer.restore({part: file.get_tensor(name) for part, name in parts.items() if name in names})
    skipped, in_a_row = json.loads(metadata["skipped"])
    return json.loads(metadata["losses"]), skipped, in_a_row


def _number(name: str) -> int:
    """The number of a tensor's parameter."""
    return int(name.partition(".")[0])


def _named(
    parameters: Sequence[Tensor], best: Sequence[Tensor] | None, optimizers: Sequence[Adam]
) -> Iterator[tuple[str, Tensor]]:
    for number, (parameter, optimizer) in enumerate(zip(parameters, optimizers, strict=True)):
        yield f"{number}{NOW}", parameter
        for part, tensor in optimizer.state().items():
            yield f"{number}.{part}", tensor
        if best is not None:
            yield f"{number}.best", best[number]
