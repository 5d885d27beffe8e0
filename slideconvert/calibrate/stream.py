"""The calibration tokens on their way through a model: their hidden states before one layer after another.

One stream runs behind the layers that are compressed already. A second one runs through the dense model where a method
or training compares with it.
"""

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
"""One sequence in HELD_SHARE is held out of the fit, to decide on."""


@dataclass(frozen=True)
class StreamOptions:
    """How tokens run through the layers; results depend on it by rounding alone.

    device: computes. place: keeps hidden states (core.choices.PLACES), `folder` those on disk. batch_tokens: go through
    a layer at once, in `dtype`.
    """

    device: torch.device
    place: str
    folder: Path
    batch_tokens: int
    dtype: torch.dtype = torch.float32

    def batch(self, length: int) -> int:
        """Sequences of `length` tokens that go through a layer at once."""
        return max(1, self.batch_tokens // length)

    def store(self, name: str) -> Activations:
        """An empty store for hidden states, in their place."""
        return Activations(self.place, self.device, self.folder, name)


class Stream:
    """Hidden states before a layer, and the layer that they enter."""

    def __init__(self, name: str, hidden: Activations, options: StreamOptions) -> None:
        self.name, self.hidden, self.options = name, hidden, options
        self.layer: Layer
        self._attended: Activations | None = None
        self._inner: Activations | None = None
        self._left = False

    def enter(self, layer: Layer) -> None:
        """Put `layer` behind the hidden states."""
        self.layer, self._attended, self._inner, self._left = layer, None, None, False

    def inputs(self, group: int, *, leaving: bool) -> Iterator[Tensor]:
        """The input of an input group, batch by batch [sequences, length, K].

        leaving: the layer's weights are final, so the last group's inputs take the stream on to the layer's output.
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
        """Permute the kept input of an input group: channel i is channel order[i] [K] from now on."""
        store = self._attended if group == self._landmarks[0] else self._inner
        for number in range(0 if store is None else len(store)):
            assert store is not None
            store.replace(number, store[number].index_select(-1, order.to(self.options.device)))

    @property
    def _landmarks(self) -> tuple[int, int]:
        """The index of the input group that reads what attention computes, and that of the last group."""
        architecture = self.layer.architecture
        return architecture.attended, len(architecture.input_groups) - 1

    @property
    def _keeps_inner(self) -> bool:
        """Whether the MLP's inner states, the widest of all, are kept and not computed again. They fill a GPU's memory,
        and a GPU computes them faster than it moves them."""
        return self.options.device.type == "cpu"

    def leave(self) -> None:
        """Run all tokens through the layer with its present weights."""
        if not self._left:
            for _ in self.inputs(self._landmarks[1], leaving=True):
                pass
        self._attended = self._inner = None


def held_out(sequences: int) -> tuple[Tensor, Tensor]:
    """Numbers of the sequences that are fitted, and of those held out (the last ones), [n] int64 each."""
    held = sequences // HELD_SHARE or 1
    fitted, rest = torch.arange(sequences).split([sequences - held, held])
    return fitted, rest


def embed(decoder: Decoder, parts: Sequence[Tensor], options: StreamOptions, name: str) -> Activations:
    """Tokens [sequences, length], part by part -> hidden states before the first layer; batches end where parts do."""
    hidden, embedding = options.store(name), decoder.embedding()
    for part in parts:
        for tokens in part.split(options.batch(part.shape[1])):
            hidden.append(embedding(tokens))
    return hidden


class Streams:
    """The compressed stream, and the dense one where it is wanted (None elsewhere), over the same batches of sequences.
    Those held out come last, in batches of their own."""

    def __init__(self, decoder: Decoder, tokens: Tensor, options: StreamOptions, *, dense: bool) -> None:
        self.decoder, self.options, self.number = decoder, options, -1
        self.fitted, self.held = held_out(len(tokens))
        hidden = embed(decoder, (tokens[self.fitted], tokens[self.held]), options, "hidden")
        self.fitted_batches = -(-len(self.fitted) // options.batch(tokens.shape[1]))
        self.compressed = Stream("compressed", hidden, options)
        self.dense = Stream("dense", hidden.copy("dense"), options) if dense else None

    @property
    def layer(self) -> Layer:
        """The layer that is being compressed."""
        return self.compressed.layer

    def enter(self, number: int) -> None:
        """Load a layer, twice where the dense stream runs."""
        self.number = number
        self.compressed.enter(self.decoder.layer(number))
        if self.dense:
            self.dense.enter(self.layer.twin())

    def statistics(self, group: int, *, diagonal: bool = False) -> Statistics:
        """Statistics of the input of an input group. InputError if it is not finite.

        diagonal: of the fitted sequences' Gram matrix the diagonal alone.
        """
        fit: Accumulator | None = None
        held: Accumulator | None = None
        dense = self.dense.inputs(group, leaving=True) if self.dense else None
        for number, inputs in enumerate(self.compressed.inputs(group, leaving=False)):
            wanted = next(dense).flatten(0, 1) if dense else None
            if fit is None or held is None:
                columns, device = inputs.shape[-1], inputs.device
                fit = Accumulator(columns, device, cross=dense is not None, diagonal=diagonal)
                held = Accumulator(columns, device, cross=dense is not None)
            (fit if number < self.fitted_batches else held).add(inputs.flatten(0, 1), wanted)
        assert fit is not None and held is not None
        if dense:
            next(dense, None)  # runs the generator to its end, where it keeps what it computed
        found = fit.statistics(held.statistics())
        if not bool(found.whole.gram.isfinite().all()):
            raise InputError(
                f"layer {self.number}: the input of {self.decoder.architecture.input_groups[group][0]} is not finite",
                hint="the source model overflows on this text: check it with slideconvert eval",
            )
        return found

    def leave(self) -> None:
        """Run both streams through the layer."""
        self.compressed.leave()
        if self.dense:
            self.dense.leave()
