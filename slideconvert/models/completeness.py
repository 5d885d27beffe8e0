"""A checkpoint against the model that its config.json describes: transformers' own, built without memory for weights.

Loaders fill tensors that are missing with random numbers, and ignore those that the model does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..checkpoint.files import CONFIG
from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..formats.base import StoredLinear
from .families import architecture_of, decoder_linears

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a model, by name."""


def shapes_of(model: Any) -> Shapes:
    """Of a model, on any device."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def surplus_tensors(checkpoint: Checkpoint, described: Shapes) -> tuple[str, ...]:
    """The tensors of modules that the model does not have: rotary buffers, further layers, further heads."""
    modules = {name.rpartition(".")[0] for name in described}
    return tuple(name for name in sorted(checkpoint.tensors) if name.rpartition(".")[0] not in modules)


def model_faults(checkpoint: Checkpoint, described: Shapes, linears: Iterable[StoredLinear]) -> list[InputError]:
    """Tensors that are missing, have another shape, or stand in a module of the model that has no such tensor.

    linears: the decoder linears that could be described; a missing weight of the others has its own error.
    """
    architecture, where = architecture_of(checkpoint.config), checkpoint.path
    stored = {linear.name: linear for linear in linears}
    names = [linear.name for linear in decoder_linears(checkpoint.config)]
    own = {f"{name}.weight" for name in names}
    faults = [
        _other_shape(checkpoint, name, linear.shape, described[f"{name}.weight"])
        for name, linear in stored.items()
        if described.get(f"{name}.weight", linear.shape) != linear.shape
    ]
    tied = {f"{architecture.head}.weight"} if architecture.is_tied(checkpoint.config) else set()
    for name, shape in described.items():
        if name in own:
            continue
        if name in checkpoint.tensors:
            found = checkpoint.spec(name).shape
            faults += [] if tuple(found) == shape else [_other_shape(checkpoint, name, found, shape)]
        elif name not in tied:
            faults.append(InputError(f"{where}: tensor {name} is missing", hint="the checkpoint is incomplete"))
    explained = {spec.name for linear in stored.values() for spec in linear.tensors} | own | set(described)
    explained |= set(surplus_tensors(checkpoint, described))
    unknown = tuple(f"{name}." for name in names if name not in stored)
    faults += [
        InputError(
            f"{where}: tensor {name} belongs to a module that has none of this name, by {CONFIG}",
            hint=f"correct {CONFIG} (attention_bias, mlp_bias) or take the tensor out: loaders disagree on it",
        )
        for name in sorted(checkpoint.tensors.keys() - explained)
        if not name.startswith(unknown)
    ]
    return faults


def check_tied(checkpoint: Checkpoint) -> None:
    """InputError if a stored head differs from the embedding that config.json ties it to: loaders disagree on it."""
    architecture = architecture_of(checkpoint.config)
    head, embedding = f"{architecture.head}.weight", f"{architecture.embedding}.weight"
    if not architecture.is_tied(checkpoint.config) or not {head, embedding} <= checkpoint.tensors.keys():
        return
    ours, theirs = checkpoint.spec(head), checkpoint.spec(embedding)
    pairs = zip(checkpoint.pieces(head), checkpoint.pieces(embedding), strict=False)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not all(torch.equal(a, b) for a, b in pairs):
        raise InputError(
            f"{head} differs from the embedding, but config.json ties them (tie_word_embeddings)",
            hint="set tie_word_embeddings to false if the head is a separate matrix",
        )


def _other_shape(checkpoint: Checkpoint, name: str, found: Iterable[int], wanted: Iterable[int]) -> InputError:
    return InputError(
        f"{checkpoint.path}: {name} has shape {list(found)}, {CONFIG} describes {list(wanted)}",
        hint=f"weights and {CONFIG} do not belong together: take both from the same place",
    )
