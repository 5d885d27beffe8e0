"""The memory of a calibrated conversion by purpose and by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """The bytes of a stage. device: where the model computes. hidden: hidden states of all tokens, wherever `--keep-on`
    stores them."""

    device: int
    hidden: int = 0


class Training(NamedTuple):
    """The bytes of training end to end. device: where the model computes, all in all. offloaded: how much of that
    `--offload` moves to CPU memory, where it takes `pinned`. host: what a GPU leaves in CPU memory in any case, the
    dense model's last hidden states among it (with `--keep-on disk`, these are on disk)."""

    device: int = 0
    offloaded: int = 0
    pinned: int = 0
    host: int = 0


@dataclass(frozen=True)
class Needs:
    """Bytes by purpose, on the device where the model computes unless noted; 0 for what is not done.

    hidden: hidden states of all tokens between layers and within one, wherever they are stored (inner states only on a
    CPU). trained_hidden: those of them that are left when the layer trains. generating: the dense model and its
    key-value cache. layer: weights of the current layer, for each of the `streams`. solving: the largest input group
    with its matrices. batch: tokens that run through a layer at once. block_training: a layer in training, and the
    dense layer. target_states: hidden states while the dense model makes the targets of training end to end, wherever
    they are stored. end_training: that training.
    """

    hidden: int
    trained_hidden: int
    generating: int
    layer: int
    streams: int
    solving: int
    batch: int
    block_training: int
    target_states: int
    end_training: Training

    def stages(self, *, offload: bool = False) -> dict[str, Stage]:
        """The stages by name, those that are done. offload: with --offload."""
        end = self.end_training
        found = {
            "generate": Stage(self.generating),
            "solve": Stage(self.layer + max(self.solving, self.batch), self.hidden),
            "train by block": Stage(self.block_training, self.trained_hidden),
            "targets": Stage(self.layer // self.streams + self.batch if self.target_states else 0, self.target_states),
            "train end to end": Stage(end.device - (end.offloaded if offload else 0)),
        }
        return {name: stage for name, stage in found.items() if stage.device}

    @property
    def device(self) -> int:
        """Peak on the device, without the hidden states, which may be stored elsewhere."""
        return max(stage.device for stage in self.stages().values())

    @property
    def peak(self) -> int:
        """Peak on the device, with the hidden states."""
        return max(sum(stage) for stage in self.stages().values())

    @property
    def offload_device(self) -> int:
        """Peak on the device with --offload, which stores hidden states in CPU memory as well."""
        return max(stage.device for stage in self.stages(offload=True).values())

    @property
    def offload_host(self) -> int:
        """Peak of CPU memory with --offload, besides `direct_memory`."""
        end = self.end_training
        return max(end.pinned + end.host, *(stage.hidden for stage in self.stages().values()))

    def to_json(self) -> dict[str, Any]:
        stages = {name: stage._asdict() for name, stage in self.stages().items()}
        fields = {**vars(self), "end_training": self.end_training._asdict()}
        offload = {"device": self.offload_device, "host": self.offload_host}
        return {**fields, "stages": stages, "device": self.device, "peak": self.peak, "offload": offload}
