"""The options of each job that plans or writes a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core import choices
from .base import option
from .machine import (
    ComputeOptions,
    DeviceOptions,
    OffloadOptions,
    OutputOptions,
    RevisionOptions,
    SourceOptions,
    WriteOptions,
)
from .recipe import (
    CalibrationOptions,
    GroupPatternOptions,
    GroupSchemeOptions,
    MethodOptions,
    PatternOptions,
    PresetOptions,
    RecipeFile,
    RecipeOptions,
    SchemeOptions,
    SmoothOptions,
    TrainingOptions,
)
from .target import TargetOptions


@dataclass(frozen=True)
class ConvertOptions(RecipeOptions, TargetOptions, ComputeOptions, OffloadOptions, SourceOptions, OutputOptions):
    """Options of `convert`."""


@dataclass(frozen=True)
class PlanOptions(ConvertOptions):
    """Options of `plan`: those of `convert`, so that it plans any conversion, and how long that takes."""

    HEADING: ClassVar[str] = "Time"

    probe: bool = option(
        "Convert small models of the same shapes for half a minute, and tell how long each stage takes here.",
        default=False,
    )
    ranks: int | None = option("With --probe: processes that share the conversion.  [default: 1]", minimum=1)


@dataclass(frozen=True)
class AllocateOptions(
    TargetOptions,
    RecipeFile,
    PresetOptions,
    MethodOptions,
    SchemeOptions,
    CalibrationOptions,
    ComputeOptions,
    RevisionOptions,
):
    """Options of `allocate`."""


@dataclass(frozen=True)
class SparsifyOptions(
    PatternOptions,
    GroupPatternOptions,
    PresetOptions,
    MethodOptions,
    TrainingOptions,
    CalibrationOptions,
    ComputeOptions,
    OffloadOptions,
    SourceOptions,
    OutputOptions,
):
    """Options of `sparsify`."""

    method: str | None = option("One pruning method, instead of the preset's.", choices=choices.PRUNING)
    group_size: int | None = option("Weights of a group that is pruned as a whole (GQSA).  [default: 16]")


@dataclass(frozen=True)
class QuantizeOptions(
    SchemeOptions,
    GroupSchemeOptions,
    MethodOptions,
    SmoothOptions,
    CalibrationOptions,
    ComputeOptions,
    SourceOptions,
    OutputOptions,
):
    """Options of `quantize`."""

    scheme: str | None = option(
        "Number scheme of the weights.  [default: int8]",
        choices=[name for name in choices.SCHEMES if name != choices.BF16],
    )
    method: str | None = option("rtn rounds to nearest, gptq by calibration.  [default: rtn]", choices=choices.ROUNDING)


@dataclass(frozen=True)
class SlideOptions(PatternOptions, DeviceOptions, SourceOptions, OutputOptions):
    """Options of `slide`."""

    pattern: str | None = option("Pattern of weights that another tool pruned.", metavar="2_L")


@dataclass(frozen=True)
class RelayoutOptions(DeviceOptions, OutputOptions):
    """Options of `relayout`."""


@dataclass(frozen=True)
class RotateOptions(CalibrationOptions, ComputeOptions, SourceOptions, WriteOptions):
    """Options of `rotate`."""

    HEADING: ClassVar[str] = "Rotation"

    pattern: str | None = option("Pattern of the conversion to come, 2_4 … 2_16.  [default: 2_4]", metavar="2_L")
    parts: str | None = option(
        "Rotate the values of heads alone, or the residual stream too.  [default: all]", choices=choices.ROTATED
    )
    steps: int | None = option("Steps of the search for rotations.  [default: 200]", minimum=1)
