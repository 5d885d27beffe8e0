"""Streams: the hidden states of the calibration tokens, advanced through a model layer by layer.

The compressed stream passes through the compressed layers. The dense stream passes through the dense model, if a method
or training compares with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import ranks
from ..core.weights import unit_of
from ..errors import InputError
from ..models.decoder import Decoder, Layer
from ..plan.calibration import trained_at_once
from ..prune.statistics import Accumulator, Statistics
from .activation_error import SAMPLE
from .activations import Activations

HELD_SHARE, MOST_HELD = 8, 32
"""One sequence in HELD_SHARE, at most MOST_HELD, is held out of the fit, to choose between results and to measure them.
More would make choices hardly better, and leave the fit less text."""


@dataclass(frozen=True)
class StreamOptions:
    """How tokens run through the layers. Results depend on it only through rounding.

    device: where the model computes. place: where hidden states are stored (core.choices.PLACES). folder: for those on
    disk. batch_tokens: tokens that run through a layer at once. dtype: of the running layers.
    """

    device: torch.device
    place: str
    folder: Path
    batch_tokens: int
    dtype: torch.dtype = torch.float32

    def batch(self, length: int) -> int:
        """Sequences of `length` tokens that run through a layer at once."""
        return max(1, self.batch_tokens // length)

    def micro(self, length: int) -> int:
        """Sequences of `length` tokens that run through a layer at once in training."""
        return trained_at_once(self.batch_tokens, length)

    def store(self, name: str) -> Activations:
        """An empty store for hidden states."""
        return Activations(self.place, self.device, self.folder, name)

    def store_beside(self, name: str) -> Activations:
        """An empty store for states that are read once in a step of training: in CPU memory, not on the device."""
        place = "cpu" if self.place == "device" else self.place
        return Activations(place, self.device, self.folder, name)


class Stream:
    """Hidden states of all tokens before a layer, and that layer."""

    def __init__(self, name: str, hidden: Activations, options: StreamOptions) -> None:
        self.name, self.hidden, self.options = name, hidden, options
        self.layer: Layer
        self._attended: Activations | None = None
        self._inner: Activations | None = None
        self._left = False

    def enter(self, layer: Layer) -> None:
        """Make `layer` the current layer."""
        self.layer, self._attended, self._inner, self._left = layer, None, None, False

    def inputs(self, group: int, *, leaving: bool) -> Iterator[Tensor]:
        """The input of an input group, batch by batch [sequences, length, K].

        leaving: the layer's weights are final, so that computing the last group's input also advances the hidden states
        to the layer's output.
        """
        after_attention, last = self._landmarks
        attended = self.options.store(f"{self.name}-attended") if group == after_attention else None
        inner = (
            self.options.store(f"{self.name}-inner") if group == last and not leaving and self._keeps_inner else None
        )
        for number in range(len(self.hidden)):
            known = self._attended[number] if self._attended is not None and group > after_attention else None
            if group == last and leaving:
                reached = self._inner[number] if self._inner is not None else None
                output, inputs = self.layer.output(self.hidden[number], known, reached)
                self.hidden.replace(number, output)
            else:
                inputs = self.layer.inputs(group, self.hidden[number], known)
            for store in (attended, inner):
                if store is not None:
                    store.append(inputs)
            yield inputs
        if attended is not None:
            self._attended = attended
        self._inner = inner
        self._left = group == last and leaving

    def reorder(self, group: int, order: Tensor) -> None:
        """Permute the stored input of an input group: new channel i is old channel order[i]. order [K] int64."""
        store = self._attended if group == self._landmarks[0] else self._inner
        for number in range(0 if store is None else len(store)):
            assert store is not None
            store.replace(number, store[number].index_select(-1, order.to(self.options.device)))

    @property
    def _landmarks(self) -> tuple[int, int]:
        """The index of the input group that reads the output of attention, and that of the last group."""
        architecture = self.layer.architecture
        return architecture.attended, len(architecture.input_groups) - 1

    @property
    def _keeps_inner(self) -> bool:
        """Whether the MLP's inner states, the widest ones, are stored instead of recomputed. On a GPU they would fill
        the memory, and computing them is faster than moving them."""
        return self.options.device.type == "cpu"

    def leave(self) -> None:
        """Advance all tokens through the current layer with its present weights."""
        if not self._left:
            for _ in self.inputs(self._landmarks[1], leaving=True):
                pass
        self._attended = self._inner = None


def held_out(sequences: int, generated: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers of the fitted sequences, and of the held-out ones (the last), [n] int64 each.

    One in HELD_SHARE is held out, at least one and at most MOST_HELD. generated: how many of them, the first, the model
    has generated; none of these is held out, nor counted for it.
    """
    held = min((sequences - generated) // HELD_SHARE, MOST_HELD) or 1
    fitted, rest = torch.arange(sequences).split([sequences - held, held])
    return fitted, rest


def embed(decoder: Decoder, parts: Sequence[Tensor], options: StreamOptions, name: str) -> Activations:
    """parts: tokens [sequences, length] int64 -> hidden states before the first layer. No batch spans two parts."""
    hidden, embedding = options.store(name), decoder.embedding()
    for part in parts:
        for tokens in part.split(options.batch(part.shape[1])) if len(part) else ():
            hidden.append(embedding(tokens))
    return hidden


class Streams:
    """The compressed stream, and the dense stream or None, over the same batches of sequences.

    The held-out sequences come last, in separate batches; the first `generated` ones are never held out. Each rank has
    its share of the sequences; statistics are those of all ranks. length: tokens of a sequence. fitted, held: numbers
    of sequences. sample [tokens, K]: inputs of the input group that was collected last.
    """

    def __init__(
        self, decoder: Decoder, tokens: Tensor, options: StreamOptions, *, dense: bool, generated: int = 0
    ) -> None:
        self.decoder, self.options, self.number = decoder, options, -1
        self.length = tokens.shape[1]
        self.sample: Tensor
        self.fitted, self.held = held_out(len(tokens), generated)
        (fitted, _), (held, _) = ranks.share(self.fitted), ranks.share(self.held)
        if ranks.count() > len(self.fitted):
            raise InputError(
                f"{ranks.count()} ranks, but only {len(self.fitted)} calibration sequences to fit to",
                hint="start fewer ranks, or take more --samples",
            )
        hidden = embed(decoder, (tokens[fitted], tokens[held]), options, "hidden")
        self.fitted_batches = -(-len(fitted) // options.batch(tokens.shape[1]))
        self.compressed = Stream("compressed", hidden, options)
        self.dense = Stream("dense", hidden.copy("dense"), options) if dense else None

    @property
    def layer(self) -> Layer:
        """The current layer of the compressed stream."""
        return self.compressed.layer

    def enter(self, number: int) -> None:
        """Load a layer, and a copy of it for the dense stream."""
        self.number = number
        self.compressed.enter(self.decoder.layer(number))
        if self.dense:
            self.dense.enter(self.layer.twin())

    def statistics(self, group: int, *, diagonal: bool = False) -> Statistics:
        """Statistics of the input of an input group, some of which stays in `sample`. InputError if it is not finite.

        diagonal: compute only the diagonal of the Gram matrix.
        """
        fit: Accumulator | None = None
        held: Accumulator | None = None
        dense = self.dense.inputs(group, leaving=True) if self.dense else None
        for number, inputs in enumerate(self.compressed.inputs(group, leaving=False)):
            wanted = next(dense).flatten(0, 1) if dense else None
            if fit is None or held is None:
                columns, device = inputs.shape[-1], inputs.device
                unit, self.sample = ranks.agreed(unit_of(inputs)), inputs.flatten(0, 1)[:SAMPLE].clone()
                fit = Accumulator(columns, device, cross=dense is not None, diagonal=diagonal, unit=unit)
                held = Accumulator(columns, device, cross=dense is not None, diagonal=diagonal, unit=unit)
            (fit if number < self.fitted_batches else held).add(inputs.flatten(0, 1), wanted)
        assert fit is not None and held is not None
        if dense:
            next(dense, None)  # runs the generator to its end, where it stores its results
        unseen = held.statistics()
        found = fit.statistics(unseen)
        if not all(bool(one.gram.isfinite().all()) for one in (found, unseen)):
            raise InputError(
                f"layer {self.number}: the input of {self.decoder.architecture.input_groups[group][0]} is not finite",
                hint="the source model overflows on this text: check it with slideconvert eval",
            )
        return found

    def leave(self) -> None:
        """Advance both streams through the layer."""
        self.compressed.leave()
        if self.dense:
            self.dense.leave()
