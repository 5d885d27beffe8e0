"""The channel scales that smoothing folds into the model: their files, their sums, and the smoothed source.

An input channel of a linear is divided by a scale where it is made, in the weight of a norm or in a row of up_proj, and
the columns of the linears that read it are multiplied by the same scale (SmoothQuant, arXiv 2211.10438, equation 3).
Scales are powers of two: no weight is rounded, so the model computes the same function, and scales are undone to the
bit.

channel_scales.json beside the weights stores the exponents, so that `verify` can compare with the source:
{"0": {"input_layernorm": [3, -1, …], …}, …}, by decoder layer and the submodule that makes the channels. A chain of
conversions adds them up: the file is relative to the first source, in the order of its channels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CHANNEL_SCALES
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError
from ..models.families import architecture_of

RESTORE_HINT = "download or copy the checkpoint again"
LARGEST = 64
"""The largest exponent in a file. A search finds at most `search.LARGEST`; a chain of conversions adds several."""

Scales = dict[int, dict[str, Tensor]]
"""By decoder layer and the submodule that makes the channels, the exponent of two of each, [K] int64."""


@dataclass(frozen=True)
class Smoothed(Checkpoint):
    """A checkpoint whose channels are scaled as they are read.

    factors: by the name of a tensor what it is multiplied by, float32, powers of two: [1, K] for the columns of a
    matrix, [N, 1] for its rows (up_proj has both), [1, K] for a vector.
    """

    factors: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Checkpoint, scales: Scales) -> Smoothed:
        """The source with scales folded in."""
        architecture, found = architecture_of(source.config), defaultdict[str, list[Tensor]](list)
        for layer, makers in scales.items():
            prefix = architecture.layer(layer)
            for maker, exponents in makers.items():
                scale = torch.exp2(exponents.float())[None]
                rows = len(source.spec(f"{prefix}.{maker}.weight").shape) > 1
                found[f"{prefix}.{maker}.weight"].append(scale.reciprocal().T if rows else scale.reciprocal())
                found[f"{prefix}.{maker}.bias"].append(scale.reciprocal())
                for reader in architecture.scaled[maker]:
                    found[f"{prefix}.{reader}.weight"].append(scale)
        factors = {name: own for name, own in found.items() if name in source.tensors}
        return cls(**{one.name: getattr(source, one.name) for one in fields(Checkpoint)}, factors=factors)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start … stop of a tensor, flattened, scaled."""
        found, factors = super().read_flat(name, start, stop), self.factors.get(name)
        if not factors:
            return found
        columns = self.spec(name).shape[-1]
        first, last = start // columns, -(-stop // columns)  # the rows that they lie in; a vector is one
        for factor in factors:
            rows = factor if len(factor) == 1 else factor[first:last]
            whole = rows.to(found.dtype).expand(last - first, columns).flatten()
            found.mul_(whole[start - first * columns :][: len(found)])
        return found


def added(first: Scales, then: Scales) -> Scales:
    """The scales of `first` and `then` together, without those that change nothing."""
    found: Scales = {}
    for layer in sorted(first.keys() | then.keys()):
        one, other = first.get(layer, {}), then.get(layer, {})
        parts = {maker: [part[maker] for part in (one, other) if maker in part] for maker in one | other}
        makers = {maker: torch.stack(own).sum(0) for maker, own in parts.items()}
        if kept := {maker: exponents for maker, exponents in makers.items() if bool(exponents.any())}:
            found[layer] = kept
    return found


def between(theirs: Scales, ours: Scales) -> Scales:
    """The scales from one checkpoint to another. Both arguments are relative to the first source."""
    return added({layer: {maker: -one for maker, one in makers.items()} for layer, makers in theirs.items()}, ours)


def to_json(scales: Scales) -> str:
    """The content of channel_scales.json, a line for each layer."""
    lines = [
        f'"{layer}": {json.dumps({maker: one.tolist() for maker, one in makers.items()}, separators=(",", ":"))}'
        for layer, makers in sorted(scales.items())
    ]
    return "{" + ",\n".join(lines) + "}\n"


def read_scales(checkpoint: Checkpoint) -> Scales:
    """The channel scales of a checkpoint, {} if it has none. InputError unless they fit the model."""
    path = checkpoint.path / CHANNEL_SCALES
    return parse_scales(read_json(path), checkpoint.config, str(path)) if path.is_file() else {}


def parse_scales(found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Scales:
    """Scales from JSON. InputError about `where` unless they fit the model that config.json describes."""
    architecture = architecture_of(config)
    sizes = {maker: int(config["hidden_size"]) for maker in architecture.scaled}
    if architecture.inner and architecture.inner.linear_in:
        sizes[architecture.inner.linear_in] = int(config["intermediate_size"])
    numbers = {str(number): number for number in range(config["num_hidden_layers"])}
    scales: Scales = {}
    for layer, makers in found.items():
        if layer not in numbers or not isinstance(makers, dict) or makers.keys() - sizes.keys():
            raise InputError(f"{where}: the model has no such channels in layer {layer[:20]}", hint=RESTORE_HINT)
        for maker, exponents in makers.items():
            fits = isinstance(exponents, list) and len(exponents) == sizes[maker]
            if not (fits and all(type(one) is int and abs(one) <= LARGEST for one in exponents)):
                raise InputError(
                    f"{where}: layer {layer}: the scales of {maker} are not {sizes[maker]} whole numbers of at most "
                    f"{LARGEST}",
                    hint=RESTORE_HINT,
                )
            scales.setdefault(numbers[layer], {})[maker] = torch.tensor(exponents)
    return scales
