"""The options of every job, once: the fields of these dataclasses are the arguments of the Python functions, and the
command line makes its flags and its help of them.

A class is a heading of --help, a job inherits the headings that it offers. None means that an option is not given; the
job then takes the default that the help names. An option that would have no effect raises InputError.

Nothing heavy is imported here, so that --help is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from ..core import choices

SPEC = "option"


@dataclass(frozen=True)
class Spec:
    """How an option appears on the command line.

    help: what it does, with its default in brackets. flag: its spelling, the field's name with dashes unless given.
    metavar: what stands for the value. choices: the values to choose from, which then stand for it. minimum: of a
    whole number.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | None = None


@dataclass(frozen=True)
class Option:
    """One option of a job: its field, type and default, the heading it stands under, and its Spec."""

    name: str
    type: type
    default: Any
    heading: str
    spec: Spec

    @property
    def flag(self) -> str:
        """--name as it is written."""
        return self.spec.flag or f"--{self.name.replace('_', '-')}"


def option(
    help: str,
    *,
    default: Any = None,
    flag: str = "",
    metavar: str = "",
    choices: Sequence[str] = (),
    minimum: int | None = None,
) -> Any:
    """A dataclass field with the Spec of its option."""
    return field(default=default, metadata={SPEC: Spec(help, flag, metavar, tuple(choices), minimum)})


class Options:
    """Base of all option classes."""

    HEADING: ClassVar[str] = ""

    @classmethod
    def options(cls) -> list[Option]:
        """The options of a job, those of the first base first."""
        known: dict[str, Field[Any]] = {one.name: one for one in fields(cls)}  # type: ignore[arg-type]
        hints, owners = get_type_hints(cls), _owners(cls)
        return [_option(known[name], hints[name], owner.HEADING) for name, owner in owners.items() if name in known]

    def given(self) -> list[Option]:
        """The options that have another value than their default."""
        return [one for one in self.options() if getattr(self, one.name) != one.default]


def _owners(cls: type[Options]) -> dict[str, type[Options]]:
    """The names that a class and its bases annotate, the first base's first, each with the class that introduces it."""
    owners: dict[str, type[Options]] = {}
    for base in cls.__bases__:
        if issubclass(base, Options):
            owners = {**owners, **_owners(base), **owners}
    return {**owners, **{name: cls for name in get_annotations(cls) if name not in owners}}


def _option(one: Field[Any], hint: Any, heading: str) -> Option:
    value = next((part for part in getattr(hint, "__args__", (hint,)) if part is not type(None)), hint)
    return Option(one.name, value, one.default, heading, one.metadata[SPEC])


@dataclass(frozen=True)
class SourceOptions(Options):
    """Which revision of a Hub id is read, and where its files are kept."""

    HEADING: ClassVar[str] = "Source"

    revision: str | None = option("Branch, tag or commit of a Hub id.  [default: main]")
    source_cache: Path | None = option(
        "Folder for sources from the Hub.  [default: the Hugging Face cache]", metavar="DIR"
    )
    low_disk: bool = option(
        "Fetch the shards of a Hub id as they are read and keep at most three of them; some are fetched twice.",
        default=False,
    )


@dataclass(frozen=True)
class RevisionOptions(Options):
    """Which revision of a Hub id is read."""

    HEADING: ClassVar[str] = "Source"

    revision: str | None = option("Branch, tag or commit of a Hub id.  [default: main]")


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

    preset: str | None = option("Trade time for accuracy.  [default: balanced]", choices=choices.PRESETS)


@dataclass(frozen=True)
class MethodOptions(Options):
    """One method for all linears."""

    HEADING: ClassVar[str] = "Recipe"

    method: str | None = option(
        "One method for all linears, instead of the preset's.", choices=(*choices.PRUNING, *choices.ROUNDING)
    )


@dataclass(frozen=True)
class EpochOptions(Options):
    """How long the result is trained."""

    HEADING: ClassVar[str] = "Recipe"

    block_epochs: int | None = option("Epochs of training by decoder layer.  [default: the preset's]", minimum=0)
    end_epochs: int | None = option("Epochs of training end to end.  [default: the preset's]", minimum=0)


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

    calibration: str | None = option("Calibration text: a file or a data set.  [default: C4]", metavar="TEXT")
    samples: int | None = option("Calibration sequences.  [default: 128]")
    length: int | None = option("Tokens of a sequence.  [default: 2048, or the model's longest]")
    seed: int | None = option("Seed that draws the sequences.  [default: 0]")


@dataclass(frozen=True)
class LayoutOptions(Options):
    """How weights are stored."""

    HEADING: ClassVar[str] = "Output"

    layout: str | None = option(
        "How weights are stored.  [default: what the kernels of the scheme read]", choices=choices.LAYOUTS
    )
    shard_gb: float | None = option("Size of the largest weight file, in GB.  [default: 5]")


@dataclass(frozen=True)
class TimesOptions(Options):
    """The times of linears on a GPU."""

    HEADING: ClassVar[str] = "Speed and size"

    gpu: str | None = option("GPU whose measured times to use.", choices=choices.GPUS)
    tokens: int | None = option("Tokens computed at once.  [default: 4096]", minimum=1)
    speed_table: Path | None = option("CSV file with your own times.", metavar="FILE")


@dataclass(frozen=True)
class TargetOptions(TimesOptions):
    """A target, for which patterns are chosen layer by layer."""

    HEADING: ClassVar[str] = "Speed and size"

    target_speedup: float | None = option("Choose patterns that run the linears X times as fast as dense.", metavar="X")
    density: float | None = option("Choose patterns that keep this share of the weights, such as 0.75.", metavar="X")


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Where to compute."""

    HEADING: ClassVar[str] = "Compute"

    device: str | None = option("Where to compute.  [default: auto]", metavar="auto|cpu|cuda[:N]")


@dataclass(frozen=True)
class ComputeOptions(DeviceOptions):
    """How calibration runs the model."""

    HEADING: ClassVar[str] = "Compute"

    keep_on: str | None = option("Where calibration keeps hidden states.  [default: device]", choices=choices.PLACES)
    batch_tokens: int | None = option("Calibration tokens computed at once.  [default: 4096; 8192 on a GPU]", minimum=1)
    precision: str | None = option(
        "Precision of the model in calibration; auto is bfloat16 where that is fast.  [default: auto]",
        choices=choices.PRECISIONS,
    )


@dataclass(frozen=True)
class OffloadOptions(Options):
    """Where training end to end keeps its state."""

    HEADING: ClassVar[str] = "Compute"

    offload: bool = option("Keep the optimizer of training end to end in CPU memory.", default=False)


@dataclass(frozen=True)
class OutputOptions(Options):
    """How the output is written and checked."""

    HEADING: ClassVar[str] = "Output"

    resume: bool = option("Continue an interrupted run of the same settings.", default=False)
    verify: bool = option("Do not read the output back; the report says so.", default=True, flag="--no-verify")
    text: str | None = option("Measure the perplexity of source and output on this text, for the reports.")
    sequences: int | None = option("Sequences of --text to measure on.  [default: 160]", minimum=1)


@dataclass(frozen=True)
class RecipeOptions(
    RecipeFile,
    PresetOptions,
    MethodOptions,
    EpochOptions,
    PatternOptions,
    GroupPatternOptions,
    SchemeOptions,
    GroupSchemeOptions,
    CodesOptions,
    CalibrationOptions,
    LayoutOptions,
):
    """All that a recipe says."""


@dataclass(frozen=True)
class PlanOptions(RecipeOptions, TimesOptions, RevisionOptions):
    """Options of `plan`."""


@dataclass(frozen=True)
class ConvertOptions(RecipeOptions, TargetOptions, ComputeOptions, OffloadOptions, SourceOptions, OutputOptions):
    """Options of `convert`."""


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
    EpochOptions,
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
    SchemeOptions, GroupSchemeOptions, MethodOptions, CalibrationOptions, ComputeOptions, SourceOptions, OutputOptions
):
    """Options of `quantize`."""

    scheme: str | None = option(
        "Number scheme of the weights.  [default: int8]",
        choices=[name for name in choices.SCHEMES if name != "bf16"],
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
class VerifyOptions(DeviceOptions):
    """Options of `verify`."""

    HEADING: ClassVar[str] = "Source"

    source: str | None = option("Source model, a folder or a Hub id: compare every weight with it.")
    revision: str | None = option("Branch, tag or commit of the --source.  [default: main]")


@dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """How a checkpoint is run."""

    activations: str | None = option(
        "Quantize the activations as in serving, or not.  [default: quantized]", choices=choices.ACTIVATIONS
    )


@dataclass(frozen=True)
class GenerateOptions(ModelOptions):
    """Options of `generate`."""

    HEADING: ClassVar[str] = "Text"

    max_new_tokens: int | None = option("Tokens to generate at most.  [default: 32]", minimum=1)


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of `eval`: perplexity of a text, tasks of lm-eval, or both."""

    HEADING: ClassVar[str] = "Measurement"

    text: str | None = option("Perplexity on a .txt, .jsonl or .parquet file, or on a data set NAME[:CONFIG]:SPLIT.")
    sequences: int | None = option("Sequences of --text.  [default: 160]", minimum=1)
    length: int | None = option("Tokens of a sequence of --text.  [default: 512]", minimum=2)
    tasks: str | None = option("Tasks of lm-eval, an optional extra: arc_easy,hellaswag.", metavar="NAME,NAME...")
    task_path: Path | None = option(
        "Folder with your own tasks as YAML files of lm-eval. Tasks with Python code are refused.",
        metavar="DIR",
    )
    limit: int | None = option("Only the first questions of each task.", minimum=1)
    shots: int | None = option("Examples before each question.  [default: the task's own number]", minimum=0)


@dataclass(frozen=True)
class PushOptions(DeviceOptions):
    """Options of `push`."""

    HEADING: ClassVar[str] = "Push"

    dry_run: bool = option("Only show what would be sent and deleted.", default=False)
    public: bool = option("Make a new repository public; an existing one keeps its visibility.", default=False)
    revision: str | None = option(
        "Branch to push to, created from main if it is new.  [default: main]", metavar="BRANCH"
    )
    message: str | None = option("Commit message.  [default: a description of the checkpoint]")
    verify: bool = option("Verify the checkpoint first; needed after convert --no-verify.", default=False)
