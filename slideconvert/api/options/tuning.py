"""The options of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core import choices
from .base import option
from .machine import DeviceOptions


@dataclass(frozen=True)
class TuneOptions(DeviceOptions):
    """Options of `tune`."""

    HEADING: ClassVar[str] = "Tuning"

    host: str | None = option(
        "Program whose dense kernels ours are compared with.  [default: transformers]", choices=choices.HOSTS
    )
    ranks: int | None = option("Tensor-parallel ranks of vLLM that share the linears.  [default: 1]", minimum=1)
    model: str | None = option("Without CKPT: the shapes of this model.", choices=choices.SHAPED)
    shape: str | None = option("Without CKPT: linears of these shapes, separated by commas.", metavar="NxK,…")
    pattern: str | None = option("Without CKPT: patterns, separated by commas.  [default: 2:4,2:6,2:8,2:10]")
    scheme: str | None = option("Without CKPT: schemes, separated by commas.  [default: int8,fp8]")
    budget: int | None = option("Seconds after which to stop; run again to go on.  [default: none]", minimum=1)
