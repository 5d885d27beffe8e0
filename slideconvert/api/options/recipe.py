"""What to do to the weights: the options that a recipe can hold as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...core import choices
from ...plan.presets import PRESETS
from ...runtime.slidesparse_record import LAYOUTS
from ...texts.named import Documents
from .base import Options, option

CalibrationTexts = str | Path | Documents | Sequence[str | Path | Documents]
"""One text or several: paths of files, names of data sets, documents in memory."""


@dataclass(frozen=True)
class RecipeFile(Options):
    """A recipe, which the other options override."""

    HEADING: ClassVar[str] = "Recipe"

    recipe: Path | None = option(
        "YAML file, or the name of a bundled recipe, such as int8-2of8; other options override it.", metavar="FILE"
    )


@dataclass(frozen=True)
class PresetOptions(Options):
    """How much time is spent for accuracy."""

    HEADING: ClassVar[str] = "Recipe"

    preset: str | None = option("Trade time for accuracy.  [default: balanced]", choices=PRESETS)


@dataclass(frozen=True)
class MethodOptions(Options):
    """One method for all linears."""

    HEADING: ClassVar[str] = "Recipe"

    method: str | None = option(
        "One method for all linears, instead of the preset's.", choices=(*choices.PRUNING, *choices.ROUNDING)
    )


@dataclass(frozen=True)
class TrainingOptions(Options):
    """How long the result is trained, and on what text besides that of calibration."""

    HEADING: ClassVar[str] = "Recipe"

    block_epochs: int | None = option("Epochs of training by decoder layer.  [default: the preset's]", minimum=0)
    end_epochs: int | None = option("Epochs of training end to end.  [default: the preset's]", minimum=0)
    generated: int | None = option(
        "Sequences that the source model generates to train on, besides the calibration text.  [default: the preset's]",
        minimum=0,
    )


@dataclass(frozen=True)
class SmoothOptions(Options):
    """Whether inputs are made easier to quantize."""

    HEADING: ClassVar[str] = "Recipe"

    smooth: bool | None = option(
        "Move channel scales from inputs of 8-bit integers into the weights, or leave them."
        "  [default: smooth where text is calibrated with]",
        flag="--smooth/--no-smooth",
    )


@dataclass(frozen=True)
class PatternOptions(Options):
    """Which weights are pruned."""

    HEADING: ClassVar[str] = "Pattern"

    pattern: str | None = option("2_4 … 2_16, or 2_inf to prune nothing.  [default: 2_8]", metavar="2_L")


@dataclass(frozen=True)
class GroupPatternOptions(Options):
    """How many groups of weights are pruned."""

    HEADING: ClassVar[str] = "Pattern"

    sparsity: float | None = option("Prune this share of all groups of weights (GQSA).  [default: 0.5]", metavar="X")
    row_cap: float | None = option("Keep at most X times the mean number of groups in any row (GQSA).", metavar="X")


@dataclass(frozen=True)
class SchemeOptions(Options):
    """The numbers that weights are stored in."""

    HEADING: ClassVar[str] = "Numbers"

    scheme: str | None = option(
        "Number scheme of the weights.  [default: int8; w4a16 where groups are pruned]", choices=choices.SCHEMES
    )


@dataclass(frozen=True)
class GroupSchemeOptions(Options):
    """The groups of weights that share a scale."""

    HEADING: ClassVar[str] = "Numbers"

    bits: str | None = option("Weight-only scheme by its bits: w4a16 or w8a16.", metavar="4|8")
    group_size: int | None = option(
        "Weights that share a scale, and are pruned together.  [default: 128; 16 where groups are pruned]"
    )
    symmetric: bool | None = option(
        "Omit or use zero points in grouped schemes.  [default: asymmetric]", flag="--symmetric/--asymmetric"
    )


@dataclass(frozen=True)
class CodesOptions(Options):
    """What ternary weights may become."""

    HEADING: ClassVar[str] = "Numbers"

    codes: str | None = option(
        "Codes of ternary weights (BitNet): ternary ones only, or all of the scheme.  [default: ternary]",
        choices=choices.CODES,
    )


@dataclass(frozen=True)
class CalibrationOptions(Options):
    """The text that calibrated methods and training run through the model."""

    HEADING: ClassVar[str] = "Calibration"

    calibration: CalibrationTexts | None = option(
        "Calibration text: a file or a data set, of text or of conversations; give it again to mix several."
        "  [default: C4]",
        metavar="TEXT",
        several=True,
    )
    weights: str | None = option(
        "Shares of sequences from several texts, in their order, such as 2,1.  [default: equal]", metavar="X,…"
    )
    column: str | None = option(
        "Column of the text, strings or messages.  [default: text, messages or conversations]", metavar="NAME"
    )
    samples: int | None = option("Calibration sequences.  [default: 128]")
    length: int | None = option("Tokens of a sequence.  [default: 2048, or the model's longest]")
    seed: int | None = option("Seed that draws the sequences.  [default: 0]")


@dataclass(frozen=True)
class LayoutOptions(Options):
    """How weights are stored."""

    HEADING: ClassVar[str] = "Output"

    layout: str | None = option(
        "How weights are stored.  [default: what the kernels of the scheme read]", choices=LAYOUTS
    )
    shard_gb: float | None = option("Size of the largest weight file, in GB.  [default: 5]")


@dataclass(frozen=True)
class RecipeOptions(
    RecipeFile,
    PresetOptions,
    MethodOptions,
    TrainingOptions,
    SmoothOptions,
    PatternOptions,
    GroupPatternOptions,
    SchemeOptions,
    GroupSchemeOptions,
    CodesOptions,
    CalibrationOptions,
    LayoutOptions,
):
    """All that a recipe says."""
