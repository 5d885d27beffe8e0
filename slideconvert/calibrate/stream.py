"""All calibration tokens between two decoder layers, behind the compressed prefix and in the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..models.decoder import Decoder, Layer
from ..prune.statistics import Accumulator, Statistics
from .activations import Activations

HELD_SHARE = 8
"""One window in so many is held out of what is fitted, to decide on."""


@dataclass(frozen=True)
class Runs:
    """How the tokens run, as far as it decides no number but by rounding.

    device: that computes. place: where hidden states are kept (activations.PLACES), `folder` for those on disk.
    batch_tokens: how many go through a layer at once. dtype: in which they do (precision.py).
    """

    device: torch.device
    place: str
    folder: Path
    batch_tokens: int
    dtype: torch.dtype = torch.float32

    def windows(self, length: int) -> int:
        """Windows of `length` tokens that go through a layer at once."""
        return max(1, self.batch_tokens // length)

    def store(self, name: str) -> Activations:
        """An empty store for hidden states, in their place."""
        return Activations(self.place, self.device, self.folder, name)


class Lane:
    """One of the two: hidden states before a layer, and the layer that they are about to pass."""

    def __init__(self, name: str, hidden: Activations, runs: Runs) -> None:
        self.name, self.hidden, self.runs = name, hidden, runs
        self.layer: Layer
        self._attended: Activations | None = None
        self._inner: Activations | None = None
        self._passed = False

    def enter(self, layer: Layer) -> None:
        """Stand before a layer."""
        self.layer, self._attended, self._inner, self._passed = layer, None, None, False

    def inputs(self, stage: int, *, leaving: bool) -> Iterator[Tensor]:
        """The input of a stage, batch by batch. leaving: the weights are final, so go on to the layer's output."""
        after_attention, last = self._landmarks
        attended = self.runs.store(f"{self.name}-attended") if stage == after_attention else None
        inner = self.runs.store(f"{self.name}-inner") if stage == last and not leaving and self._keeps_inner else None
        for number in range(len(self.hidden)):
            known = self._attended[number] if self._attended is not None and stage > after_attention else None
            if stage == last and leaving:
                reached = self._inner[number] if self._inner is not None else None
                output, inputs = self.layer.output(self.hidden[number], known, reached)
                self.hidden.replace(number, output)
            else:
                inputs = self.layer.inputs(stage, self.hidden[number], known)
            for store in (attended, inner):
                if store is not None:
                    store.append(inputs)
            yield inputs
        if attended is not None:
            self._attended = attended
        self._inner = inner
        self._passed = stage == last and leaving

    def reorder(self, stage: int, order: Tensor) -> None:
        """What was taken along of a stage's input is read in another order [K] of its channels from now on."""
        store = self._attended if stage == self._landmarks[0] else self._inner
        for number in range(0 if store is None else len(store)):
            assert store is not None
            store.replace(number, store[number].index_select(-1, order.to(self.runs.device)))

    @property
    def _landmarks(self) -> tuple[int, int]:
        """The index of the input group that reads what attention computes, and that of the last group."""
        architecture = self.layer.architecture
        return architecture.attended, len(architecture.input_groups) - 1

    @property
    def _keeps_inner(self) -> bool:
        """Whether the MLP's inner states, the widest of all, are kept rather than computed again: they fill a GPU's
        memory, and a GPU computes them faster than it moves them."""
        return self.runs.device.type == "cpu"

    def leave(self) -> None:
        """Everything through the layer as it now is."""
        if not self._passed:
            for _ in self.inputs(self._landmarks[1], leaving=True):
                pass
        self._attended = self._inner = None


def held_out(windows: int) -> tuple[Tensor, Tensor]:
    """Numbers of the windows that are fitted, and of those held out (the last ones), [n] int64 each."""
    held = windows // HELD_SHARE or 1
    fitted, rest = torch.arange(windows).split([windows - held, held])
    return fitted, rest


def embedded(decoder: Decoder, parts: Sequence[Tensor], runs: Runs, name: str) -> Activations:
    """Tokens [windows, length], part by part, as hidden states before the first layer; batches end where parts do."""
    hidden, embed = runs.store(name), decoder.embedding()
    for part in parts:
        for tokens in part.split(runs.windows(part.shape[1])):
            hidden.append(embed(tokens))
    return hidden


class Stream:
    """Both lanes, with the same windows in the same batches; those held out come last, in batches of their own."""

    def __init__(self, decoder: Decoder, tokens: Tensor, runs: Runs, *, dense: bool) -> None:
        self.decoder, self.runs, self.number = decoder, runs, -1
        self.fitted, self.held = held_out(len(tokens))
        hidden = embedded(decoder, (tokens[self.fitted], tokens[self.held]), runs, "hidden")
        self.fitted_batches = -(-len(self.fitted) // runs.windows(tokens.shape[1]))
        self.lane = Lane("compressed", hidden, runs)
        self.dense = Lane("dense", hidden.copy("dense"), runs) if dense else None

    @property
    def layer(self) -> Layer:
        """The layer that is being compressed."""
        return self.lane.layer

    def enter(self, number: int) -> None:
        """Load a layer, twice if the dense model runs beside."""
        self.number = number
        self.lane.enter(self.decoder.layer(number))
        if self.dense:
            self.dense.enter(self.layer.twin())

    def statistics(self, stage: int, *, diagonal: bool = False) -> Statistics:
        """What the linears of a stage see. InputError if it is not finite.

        diagonal: no more of the Gram matrix than that, but over the tokens held out.
        """
        fit: Accumulator | None = None
        held: Accumulator | None = None
        dense = self.dense.inputs(stage, leaving=True) if self.dense else None
        for number, inputs in enumerate(self.lane.inputs(stage, leaving=False)):
            wanted = next(dense).flatten(0, 1) if dense else None
            if fit is None or held is None:
                columns, device = inputs.shape[-1], inputs.device
                fit = Accumulator(columns, device, cross=dense is not None, diagonal=diagonal)
                held = Accumulator(columns, device, cross=dense is not None)
            (fit if number < self.fitted_batches else held).add(inputs.flatten(0, 1), wanted)
        assert fit is not None and held is not None
        if dense:
            next(dense, None)  # lets the lane take along what it learned
        found = fit.statistics(held.statistics())
        if not bool(found.whole.gram.isfinite().all()):
            raise InputError(
                f"layer {self.number}: the input of {self.decoder.architecture.input_groups[stage][0]} is not finite",
                hint="the source model overflows on this text: check it with slideconvert eval",
            )
        return found

    def leave(self) -> None:
        """Both lanes through the layer."""
        self.lane.leave()
        if self.dense:
            self.dense.leave()
