"""Hidden states of all calibration tokens between two decoder layers: on the device, in memory or on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from .. import ranks
from ..core.choices import PLACES
from ..errors import pick


class Activations:
    """Batches of hidden states, [sequences, length, columns] each, stored in one place and computed in another.

    place: device (where the model computes), cpu, or disk (files in `folder`). InputError for other places.
    """

    def __init__(self, place: str, device: torch.device, folder: Path, name: str) -> None:
        self._place = pick(place, PLACES, "place for activations")
        self._device = device
        self._folder = folder
        self._name = name
        self._batches: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        """A batch, on the device where the model computes."""
        return self._batches[number].to(self._device)

    def sequences(self, numbers: Tensor) -> Tensor:
        """The sequences [n, length, columns] with these numbers [n] int64, on the device. Those of all batches are the
        ones that belong to this rank, in ascending order."""
        ends = list(accumulate(len(batch) for batch in self._batches))
        found = []
        for number in ranks.place(numbers).tolist():
            batch = bisect_right(ends, number)
            found.append(self._batches[batch][number - ends[batch]])
        # One by one, since what is stacked on the CPU first is not pinned.
        return torch.stack([sequence.to(self._device, non_blocking=True) for sequence in found])

    def append(self, batch: Tensor) -> None:
        """Append a batch."""
        kept = batch
        if self._place == "cpu":
            pinned = self._device.type == "cuda"
            kept = torch.empty(batch.shape, dtype=batch.dtype, pin_memory=pinned).copy_(batch)
        elif self._place == "disk":
            self._folder.mkdir(parents=True, exist_ok=True)
            path = str(self._folder / f"{self._name}-{len(self):05}.raw")
            kept = torch.from_file(path, shared=True, size=batch.numel(), dtype=batch.dtype).view(batch.shape)
            kept.copy_(batch)
        self._batches.append(kept)

    def replace(self, number: int, batch: Tensor) -> None:
        """Overwrite a batch with another one of the same shape."""
        self._batches[number].copy_(batch)

    def copy(self, name: str) -> Activations:
        """The same contents under another name."""
        other = Activations(self._place, self._device, self._folder, name)
        for batch in self:
            other.append(batch.clone() if self._place == "device" else batch)
        return other
