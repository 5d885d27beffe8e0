"""The rotations of a model, and their effect on a linear.

A rotation is an orthogonal change of basis that the linears around a channel take up, so that the model computes the
same function with other weights:

    residual  the stream x becomes x Q. What writes it (embedding, o_proj, down_proj) writes in the new basis; what
              reads it (q/k/v, gate/up, head) reads in it. An RMSNorm commutes with a rotation once its weight is folded
              into the linears behind it
    heads     the values of a key-value head become v B. The rows of v_proj and the columns of o_proj of all query heads
              that read the head take it up; attention mixes tokens, not channels

Linears are y = W x, so a linear that reads and writes rotated channels becomes Outᵀ · W · diag(norm) · In.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models.architecture import HEADS, Architecture

RESIDUAL = "residual"
"""The channels of the residual stream. The values of heads are architecture.HEADS."""

Blocks = dict[str, Tensor]
"""The rotations of a layer by channels: RESIDUAL [1, hidden, hidden], HEADS [key-value heads, head_dim, head_dim]. A
block acts on consecutive channels; channels without an entry are not rotated."""


@dataclass(frozen=True)
class Sides:
    """The channels that a linear reads and writes: RESIDUAL, HEADS, or "" for channels that are never rotated.

    norm: the norm whose weight multiplies its input from the residual stream, "" without one.
    """

    reads: str
    writes: str
    norm: str = ""


def sides_of(architecture: Architecture) -> dict[str, Sides]:
    """The sides of every linear of a layer, by submodule."""
    parts = (architecture.attention, architecture.mlp)
    norm_of = {submodule: norm for norm, readers in architecture.norm_readers.items() for submodule in readers}
    first, last = ({submodule for groups in parts for submodule in groups[at]} for at in (0, -1))
    heads = architecture.heads
    found = {}
    for submodule in architecture.linears:
        consumer = heads is not None and submodule == heads.consumer
        producer = heads is not None and heads.producer(submodule) is not None
        found[submodule] = Sides(
            reads=RESIDUAL if submodule in first else HEADS if consumer else "",
            writes=RESIDUAL if submodule in last else HEADS if producer else "",
            norm=norm_of.get(submodule, ""),
        )
    return found


@dataclass(frozen=True)
class Rotations:
    """All rotations of a model, orthogonal, float64 while they are searched for and float32 in files.

    residual: [1, hidden, hidden], or None where the residual stream is not rotated. heads: of each layer, [key-value
    heads, head_dim, head_dim].
    """

    residual: Tensor | None
    heads: tuple[Tensor, ...]

    @classmethod
    def identity(cls, architecture: Architecture, config: Mapping[str, Any], *, residual: bool) -> Rotations:
        """The rotations that change nothing, float64 on the CPU."""
        count, size = architecture.free_channels(config)[HEADS].shape
        heads = torch.eye(size, dtype=torch.float64).repeat(count, 1, 1)
        stream = torch.eye(int(config["hidden_size"]), dtype=torch.float64)[None] if residual else None
        return cls(stream, tuple(heads.clone() for _ in range(config["num_hidden_layers"])))

    def layer(self, number: int | None) -> Blocks:
        """The rotations that a layer meets; None for the tensors outside the layers."""
        found = {} if self.residual is None else {RESIDUAL: self.residual}
        return found if number is None else {**found, HEADS: self.heads[number]}

    def tensors(self) -> dict[str, Tensor]:
        """By the names in a file, where the residual rotation is a matrix [hidden, hidden]."""
        found = {f"layers.{number}.{HEADS}": blocks for number, blocks in enumerate(self.heads)}
        return found if self.residual is None else {RESIDUAL: self.residual[0], **found}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], identity: Rotations, where: str) -> Rotations:
        """The inverse of `tensors`, for a model with rotations of the shapes of `identity`. InputError about `where`
        for other names or shapes."""
        wanted = {name: list(tensor.shape) for name, tensor in identity.tensors().items()}
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if wanted != found:
            name = min(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            shapes = [str(known.get(name, "no such rotation")) for known in (found, wanted)]
            raise InputError(
                f"{where}: {name} has shape {shapes[0]}, the model has {shapes[1]}",
                hint="rotate the model again, or copy the folder again",
            )
        heads = tuple(tensors[f"layers.{number}.{HEADS}"] for number in range(len(identity.heads)))
        return cls(tensors[RESIDUAL][None] if RESIDUAL in tensors else None, heads)

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> Rotations:
        """The rotations in another dtype on a device."""
        residual = None if self.residual is None else self.residual.to(device, dtype)
        return Rotations(residual, tuple(blocks.to(device, dtype) for blocks in self.heads))


def turn_columns(matrix: Tensor, blocks: Tensor) -> Tensor:
    """matrix [N, K], blocks [n, size, size], n · size = K -> matrix · blockdiag(blocks)."""
    parts = matrix.view(len(matrix), *blocks.shape[:2]).transpose(0, 1)
    return (parts @ blocks).transpose(0, 1).reshape(matrix.shape)


def turn_rows(tensor: Tensor, blocks: Tensor) -> Tensor:
    """tensor [N, K] or a bias [N], blocks [n, size, size] -> blockdiag(blocks)ᵀ · its last n · size rows, after the
    other rows as they are: a fused qkv_proj has its values last."""
    first = len(tensor) - blocks.shape[0] * blocks.shape[1]
    turned = blocks.mT @ tensor[first:].view(*blocks.shape[:2], -1)
    return torch.cat([tensor[:first], turned.reshape(tensor[first:].shape)])


def for_readers(blocks: Tensor, columns: int) -> Tensor:
    """The rotation of `columns` input channels: query heads that share a key-value head repeat its block."""
    return blocks.repeat_interleave(columns // (blocks.shape[0] * blocks.shape[1]), 0)


def rotate_linear(weight: Tensor, sides: Sides, layer: Blocks) -> Tensor:
    """weight [N, K], the norm folded in if its input is rotated -> the weight in the rotated basis, same dtype."""
    if sides.reads in layer:
        weight = turn_columns(weight, for_readers(layer[sides.reads], weight.shape[1]))
    return turn_rows(weight, layer[sides.writes]) if sides.writes in layer else weight
