"""A target speed or size, and the times of a GPU that tell which patterns reach it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...allocate.gpus import BUNDLED
from .base import Options, option


@dataclass(frozen=True)
class TimesOptions(Options):
    """The times of linears on a GPU."""

    HEADING: ClassVar[str] = "Speed and size"

    gpu: str | None = option("GPU whose measured times to use.", choices=BUNDLED, others=True)
    tokens: int | None = option("Tokens computed at once.  [default: 4096]", minimum=1)
    speed_table: Path | None = option("CSV file with your own times.", metavar="FILE")


@dataclass(frozen=True)
class TargetOptions(TimesOptions):
    """A target, for which patterns are chosen layer by layer."""

    HEADING: ClassVar[str] = "Speed and size"

    target_speedup: float | None = option("Choose patterns that run the linears X times as fast as dense.", metavar="X")
    density: float | None = option("Choose patterns that keep this share of the weights, such as 0.75.", metavar="X")
