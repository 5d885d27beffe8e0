"""The channel scales that smoothing folds into norms and linears: their files, their sums, and the smoothed source.

An input channel of a linear is divided by a scale in the weight of the norm before it, and the columns of the linears
behind that norm are multiplied by the same scale (SmoothQuant, arXiv 2211.10438, equation 3). Scales are powers of two:
no weight is rounded, so the model computes the same function, and scales are undone to the bit.

channel_scales.json beside the weights stores the exponents, so that `verify` can compare with the source:
{"0": {"input_layernorm": [3, -1, …], …}, …}, by decoder layer and norm. A chain of conversions adds them up: the file
is relative to the first source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CHANNEL_SCALES
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError
from ..models.architecture import Architecture
from ..models.families import architecture_of

RESTORE_HINT = "download or copy the checkpoint again"
LARGEST = 64
"""The largest exponent in a file. A search finds at most `search.LARGEST`; a chain of conversions adds several."""

Scales = dict[int, dict[str, Tensor]]
"""By decoder layer and submodule of a norm, the exponent of two of each channel, [hidden] int64."""


@dataclass(frozen=True)
class Smoothed(Checkpoint):
    """A checkpoint whose channels are scaled as they are read.

    factors: by the name of a tensor what its last dimension is multiplied by, [K] float32, powers of two.
    """

    factors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Checkpoint, scales: Scales) -> Smoothed:
        """The source with scales folded in."""
        architecture = architecture_of(source.config)
        factors: dict[str, Tensor] = {}
        for layer, norms in scales.items():
            for norm, exponents in norms.items():
                names = [f"{architecture.layer(layer)}.{submodule}.weight" for submodule in readers(architecture, norm)]
                factors |= dict.fromkeys(names, torch.exp2(exponents.float()))
                factors[f"{architecture.layer(layer)}.{norm}.weight"] = torch.exp2(-exponents.float())
        known = {one.name: getattr(source, one.name) for one in fields(Checkpoint)}
        return cls(**known, factors=factors)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start … stop of a tensor, flattened, scaled."""
        found, factor = super().read_flat(name, start, stop), self.factors.get(name)
        if factor is None:
            return found
        own = factor.to(found.dtype).roll(-(start % len(factor)))
        whole = len(found) // len(own) * len(own)
        found[:whole].view(-1, len(own)).mul_(own)
        found[whole:].mul_(own[: len(found) - whole])
        return found


def readers(architecture: Architecture, norm: str) -> tuple[str, ...]:
    """The linears of a layer that read the output of one of its residual norms."""
    norms = architecture.residual_norms or ()
    parts = (architecture.attention[0], architecture.mlp[0])
    return dict(zip(norms, parts, strict=False)).get(norm, ())


def added(first: Scales, then: Scales) -> Scales:
    """The scales of `first` and `then` together, without those that change nothing."""
    found: Scales = {}
    for layer in sorted(first.keys() | then.keys()):
        one, other = first.get(layer, {}), then.get(layer, {})
        both = {norm: one[norm] + other[norm] for norm in one.keys() & other.keys()}
        norms = {norm: both.get(norm, (one | other)[norm]) for norm in (one | other)}
        if kept := {norm: exponents for norm, exponents in norms.items() if bool(exponents.any())}:
            found[layer] = kept
    return found


def between(theirs: Scales, ours: Scales) -> Scales:
    """The scales from one checkpoint to another. Both arguments are relative to the first source."""
    return added({layer: {norm: -one for norm, one in norms.items()} for layer, norms in theirs.items()}, ours)


def to_json(scales: Scales) -> str:
    """The content of channel_scales.json, a line for each layer."""
    lines = [
        f'"{layer}": {json.dumps({norm: one.tolist() for norm, one in norms.items()}, separators=(",", ":"))}'
        for layer, norms in sorted(scales.items())
    ]
    return "{" + ",\n".join(lines) + "}\n"


def read_scales(checkpoint: Checkpoint) -> Scales:
    """The channel scales of a checkpoint, {} if it has none. InputError unless they fit the model."""
    path = checkpoint.path / CHANNEL_SCALES
    return parse_scales(read_json(path), checkpoint.config, str(path)) if path.is_file() else {}


def parse_scales(found: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Scales:
    """Scales from JSON. InputError about `where` unless they fit the model that config.json describes."""
    architecture = architecture_of(config)
    norms, columns = architecture.residual_norms or (), int(config["hidden_size"])
    numbers = {str(number): number for number in range(config["num_hidden_layers"])}
    scales: Scales = {}
    for layer, by_norm in found.items():
        if layer not in numbers or not isinstance(by_norm, dict) or by_norm.keys() - set(norms):
            raise InputError(f"{where}: the model has no such norms in layer {layer[:20]}", hint=RESTORE_HINT)
        for norm, exponents in by_norm.items():
            fits = isinstance(exponents, list) and len(exponents) == columns
            if not (fits and all(type(one) is int and abs(one) <= LARGEST for one in exponents)):
                raise InputError(
                    f"{where}: layer {layer}: the scales of {norm} are not {columns} whole numbers of at most "
                    f"{LARGEST}",
                    hint=RESTORE_HINT,
                )
            scales.setdefault(numbers[layer], {})[norm] = torch.tensor(exponents)
    return scales
