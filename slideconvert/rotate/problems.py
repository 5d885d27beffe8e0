"""The pruning problems of all layers: collected in one pass of the calibration text through the dense model, layer by
layer, and kept where hidden states are kept (device, CPU memory or disk).

What needs the text is also in a file per layer, from which an interrupted run continues.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..calibrate.run import RunSettings
from ..calibrate.stream import Stream, embed
from ..checkpoint.staging import write_file, writing
from ..core.weights import unit_of
from ..errors import InputError, SlideConvertError
from ..models.decoder import Decoder, Layer
from ..progress import Progress
from ..prune.statistics import Accumulator
from .objective import InputGroup, LayerProblem, inverse_for
from .rotations import Blocks, Rotations, Sides, for_readers, sides_of

ENERGY = "energy"
"""The name of the energies of a layer's linears in its file, [linears] float64."""


class Problems:
    """The problems of a model's layers by number, on the device that computes.

    groups: the submodules of a layer whose losses rotations change, by the number of their input group.
    """

    def __init__(self, decoder: Decoder, identity: Rotations, settings: RunSettings, folder: Path) -> None:
        self._decoder, self._identity, self._settings, self._folder = decoder, identity, settings, folder
        self.sides = sides_of(decoder.architecture)
        channels = identity.layer(0).keys()
        changed = {submodule for submodule, own in self.sides.items() if {own.reads, own.writes} & channels}
        groups = enumerate(decoder.architecture.input_groups)
        self.groups = {
            number: tuple(submodule for submodule in group if submodule in changed)
            for number, group in groups
            if changed.intersection(group)
        }
        self._kept: dict[int, LayerProblem] = {}

    def __len__(self) -> int:
        return len(self._identity.heads)

    def __getitem__(self, number: int) -> LayerProblem:
        """A layer's problem, from where it is kept, or made of its file and the source's weights."""
        found = self._kept.get(number) or self._read(number)
        place = self._settings.keep_on
        if place != "disk" and number not in self._kept:
            self._kept[number] = found = _moved(found, "cpu" if place == "cpu" else self._settings.device)
        return found if place == "device" else _moved(found, self._settings.device)

    def collect(self, tokens: Tensor, progress: Progress) -> None:
        """Run tokens [sequences, length] int64 through the model and write the files of all layers.

        InputError for inputs that are not finite. Files that exist are kept, if all do.
        """
        if all(self._path(number).is_file() for number in range(len(self))):
            return
        self._decoder.record_passed(tokens.shape[1])
        options = self._settings.stream_options(self._folder / "hidden")
        stream = Stream("dense", embed(self._decoder, (tokens,), options, "hidden"), options)
        for number in range(len(self)):
            progress("statistics", number, len(self))
            layer = self._decoder.layer(number)
            fold_norms(layer, self.sides, self._identity.layer(number))
            stream.enter(layer)
            self._write(number, stream)
            stream.leave()
        progress("statistics", len(self), len(self))

    def _path(self, number: int) -> Path:
        return self._folder / f"problem-{number:05}.safetensors"

    def _write(self, number: int, stream: Stream) -> None:
        """The file of the layer that the stream has entered, once its last group's input has passed."""
        layer = self._identity.layer(number)
        tensors: dict[str, Tensor] = {}
        energies: list[float] = []
        for group, submodules in self.groups.items():
            gram = self._gram(number, stream, group)
            reads = self.sides[submodules[0]].reads
            blocks = for_readers(layer[reads], len(gram)).to(gram.device) if reads in layer else None
            try:
                tensors[str(group)] = inverse_for(gram, blocks).cpu()
            except ArithmeticError as error:
                raise SlideConvertError(
                    f"layer {number}: {self._first(group)}: {error}", hint="use more calibration samples"
                ) from error
            for submodule in submodules:
                weight = stream.layer.linear(submodule).weight.data
                energies.append(float(((weight @ gram) * weight).sum(dtype=torch.float64)))
        tensors[ENERGY] = torch.tensor(energies, dtype=torch.float64)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_file(self._path(number), save(tensors))

    def _gram(self, number: int, stream: Stream, group: int) -> Tensor:
        """The Gram matrix [K, K] float32 of the input of an input group."""
        last = group == len(self._decoder.architecture.input_groups) - 1
        collected: Accumulator | None = None
        for inputs in stream.inputs(group, leaving=last):
            collected = collected or Accumulator(inputs.shape[-1], inputs.device, unit=unit_of(inputs))
            collected.add(inputs.flatten(0, 1), None)
        assert collected is not None
        gram = collected.statistics().gram
        if not bool(gram.isfinite().all()):
            raise InputError(
                f"layer {number}: the input of {self._first(group)} is not finite",
                hint="the source model overflows on this text: check it with slideconvert eval",
            )
        return gram

    def _read(self, number: int) -> LayerProblem:
        tensors = load_file(self._path(number))
        energies = tensors[ENERGY].split([len(submodules) for submodules in self.groups.values()])
        found = []
        for (group, submodules), own in zip(self.groups.items(), energies, strict=True):
            weights = {submodule: self._weight(number, submodule) for submodule in submodules}
            found.append(InputGroup(weights, tensors[str(group)], own))
        return found

    def _first(self, group: int) -> str:
        """The linear that names an input group in messages."""
        return self._decoder.architecture.input_groups[group][0]

    def _weight(self, number: int, submodule: str) -> Tensor:
        """The weight of a linear [out, in], the norm folded in where that moves."""
        prefix = self._decoder.architecture.layer(number)
        weight = self._decoder.weight(f"{prefix}.{submodule}")
        norm = folded_norm(self.sides[submodule], self._identity.layer(number))
        return weight * self._decoder.tensor(f"{prefix}.{norm}.weight") if norm else weight


def folded_norm(sides: Sides, blocks: Blocks) -> str:
    """The norm whose weight is folded into a linear where these channels are rotated; "" for none."""
    return sides.norm if sides.reads in blocks else ""


def fold_norms(layer: Layer, sides: dict[str, Sides], blocks: Blocks) -> None:
    """Fold the weights of a layer's norms into the linears behind them, and set them to 1."""
    weights = layer.module.state_dict()
    for submodule, own in sides.items():
        if norm := folded_norm(own, blocks):
            layer.set_weight(submodule, layer.linear(submodule).weight.data * weights[f"{norm}.weight"])
            layer.module.get_submodule(norm).weight = nn.Parameter(
                torch.ones_like(weights[f"{norm}.weight"]), requires_grad=False
            )


def _moved(problem: LayerProblem, device: str) -> LayerProblem:
    return [group.to(device) for group in problem]
