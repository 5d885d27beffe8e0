"""Finished layers on disk, from which an interrupted calibration continues.

One safetensors file per layer in the staging folder of the conversion, written to a temporary file and renamed, so that
every file is complete. Its metadata describes the weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint.staging import write_file, writing
from ..core.quantize import QuantizedWeight, Weight
from ..core.schemes import read_scheme
from ..recover.options import Curve
from .result import LayerResult

SCHEME = "scheme:"
"""Prefix of a submodule in the metadata: the scheme of its codes."""
ORDER = "order:"
"""Prefix of a permuted part in the names of tensors."""
NUMBERS = ("activation_errors", "notes")
CURVES = ("curve", "end")


class LayerStore:
    """LayerResults by layer number, in files of `folder` whose names begin with `name`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05}.safetensors"

    @property
    def finished(self) -> int:
        """How many layers are saved, from the first without a gap."""
        return next(number for number in count() if not self.path(number).is_file())

    def save(self, number: int, result: LayerResult) -> None:
        """Save a layer. OutputError if the disk is full."""
        tensors: dict[str, Tensor] = {ORDER + part: order for part, order in result.permutations.items()}
        metadata = {part: json.dumps(getattr(result, part)) for part in NUMBERS}
        for part in CURVES:
            curve = getattr(result, part)
            if curve:
                metadata[part] = json.dumps(asdict(curve))
        for submodule, weight in result.weights.items():
            if isinstance(weight, QuantizedWeight):
                tensors |= {f"{submodule}.codes": weight.codes.cpu(), f"{submodule}.scale": weight.scale.cpu()}
                if weight.zero is not None:
                    tensors[f"{submodule}.zero"] = weight.zero.cpu()
                scheme = {"name": weight.scheme.name, **weight.scheme.describe(), **weight.scheme.constraint()}
                metadata[SCHEME + submodule] = json.dumps(scheme)
            else:
                tensors[submodule] = weight.cpu()
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            write_file(
                self.path(number), save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
            )

    def load(self, number: int) -> LayerResult | None:
        """A saved layer, or None."""
        if not self.path(number).is_file():
            return None
        with safe_open(self.path(number), "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        permutations = {name.removeprefix(ORDER): tensors.pop(name) for name in list(tensors) if name.startswith(ORDER)}
        weights: dict[str, Weight] = {}
        for name, tensor in tensors.items():
            submodule, _, part = name.rpartition(".")
            if SCHEME + name not in metadata and SCHEME + submodule not in metadata:
                weights[name] = tensor
            elif part == "codes":
                scheme_fields = json.loads(metadata[SCHEME + submodule])
                scheme = read_scheme(scheme_fields["name"], scheme_fields)
                weights[submodule] = QuantizedWeight(
                    tensor, tensors[f"{submodule}.scale"], scheme, tensors.get(f"{submodule}.zero")
                )
        return LayerResult(
            weights=weights,
            permutations=permutations,
            activation_errors=json.loads(metadata["activation_errors"]),
            notes={submodule: tuple(notes) for submodule, notes in json.loads(metadata["notes"]).items()},
            **{part: Curve.from_dict(json.loads(metadata[part])) for part in CURVES if part in metadata},
        )
