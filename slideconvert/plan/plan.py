"""Plan a conversion from shapes alone: the new tensors of every linear, the output files, and the memory.

The plan finds every fault that can be found before the first weight is read, and reports all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ..checkpoint.files import CHANNEL_ORDERS, CHANNEL_SCALES, companions
from ..checkpoint.reader import Checkpoint
from ..checkpoint.shards import divide
from ..checkpoint.snapshot import Snapshot
from ..checkpoint.writer import Shard
from ..errors import InputError
from ..formats.foreign import check_quantization
from ..formats.record import Record, read_record
from ..formats.registry import OWN
from ..models.architecture import Architecture
from ..models.completeness import model_faults, shapes_of, surplus_tensors
from ..models.families import architecture_of
from ..models.load import empty_model
from ..runtime.slidesparse_record import DENSE
from ..smooth.scales import Scales, Smoothed
from .calibration import Running, without_folders
from .linear import LinearPlan, permuted, plan_linear, sibling_problems
from .memory import direct_memory, needs
from .presets import Recovery
from .recipe import FIELDS, Recipe
from .smoothing import Smoothable, smoothable

PRUNED_CODES = (
    "The weights were already quantized, so their codes were pruned and the scales kept. Pruning the BF16 model "
    "first and quantizing it afterwards keeps more accuracy."
)

TERNARY = (
    "Every weight of a linear is -1, 0 or 1 times the scale of its row, as the model was trained, and stays so "
    "(codes: ternary): blocks that already have two zeros lose nothing. With codes: full, the remaining weights could "
    "take any code of the scheme, which keeps more accuracy at the same size and speed."
)

FULL_CODES = (
    "The model was trained with ternary weights. The remaining weights may take any code of the scheme (codes: full), "
    "which compensates more of the pruning. The result is not a BitNet model, but has the same size and speed."
)

PERMUTED = (
    "The inner channels of the MLPs and of the value heads are permuted, which lowers the pruning error. The model "
    f"computes the same function; {CHANNEL_ORDERS} records the permutations."
)

SMOOTHED = (
    "Channel scales moved from the inputs of linears into their weights, as powers of two, so that 8 bits hold the "
    f"inputs better. The model computes the same function; {CHANNEL_SCALES} records the scales."
)


@dataclass(frozen=True)
class Plan:
    """A whole conversion, before any weight is read or written.

    layout: of the output. linears: in model order. shards: the weight files of the output, with the tensors of each.
    """

    source: Checkpoint
    snapshot: Snapshot
    recipe: Recipe
    layout: str
    linears: tuple[LinearPlan, ...]
    shards: tuple[Shard, ...]
    before: Record | None
    """The record of the source, if slideconvert wrote it."""
    tied: tuple[str, ...]
    """A tied head that the source stores as well, and which is not written."""
    surplus: tuple[str, ...]
    """Tensors that the model does not have, and which are not written."""
    scales: Scales = field(default_factory=dict)
    """The channel scales of this conversion, which the source has when it is read."""

    def with_scales(self, scales: Scales) -> Plan:
        """The same plan for the source with channel scales folded in."""
        changed = {
            f"{self.architecture.layer(layer)}.{submodule}"
            for layer, makers in scales.items()
            for maker in makers
            for submodule in (maker, *self.architecture.scaled[maker])
        }
        linears = [plan.in_scaled if plan.linear.name in changed else plan for plan in self.linears]
        return replace(self, source=Smoothed.of(self.source, scales), linears=tuple(linears), scales=scales)

    @property
    def architecture(self) -> Architecture:
        """The family of the source."""
        return architecture_of(self.source.config)

    @property
    def record(self) -> Record:
        """The record of the output, files and kernels still empty. A chain of commands keeps the first source."""
        before = self.before
        origin = {"id": self.snapshot.id, "revision": self.snapshot.revision}
        recipe = without_folders({**(before.recipe if before else {}), **self.recipe.describe(), "layout": self.layout})
        return Record(
            layout=self.layout,
            source=before.source if before else origin,
            recipe={name: recipe[name] for name in FIELDS if name in recipe},
            linears={plan.linear.name: plan.record for plan in self.linears if plan.record},
        )

    @property
    def recovery(self) -> Recovery | None:
        """How the remaining weights are trained; None if they are not."""
        return _recovery(self.recipe, self.linears)

    @property
    def generated(self) -> int:
        """The number of sequences that the source model adds to the calibration sequences."""
        if not self.recovery:
            return 0
        own = self.recipe.generated
        return self.recovery.generated(self.recipe.calibration.samples) if own is None else own

    @property
    def layer_generated(self) -> int:
        """How many of these layers are solved and trained with; training end to end has all."""
        if not self.recovery:
            return 0
        return self.recovery.layer_generated(self.recipe.calibration.samples, self.generated)

    @property
    def calibrated(self) -> bool:
        """Whether a method or training runs text through the model."""
        return any(plan.moves for plan in self.linears)

    @property
    def smoothable(self) -> Smoothable:
        """The inputs that can be smoothed before calibration; {} without it."""
        return smoothable(self.source, self.linears) if self.calibrated else {}

    @property
    def smoothed(self) -> Smoothable:
        """The inputs that are smoothed."""
        return {} if self.recipe.smooth is False else self.smoothable

    @property
    def kept(self) -> list[str]:
        """The names of the kept linears."""
        return [plan.linear.name for plan in self.linears if plan.kept]

    @property
    def weights(self) -> int:
        """The number of weights in the decoder linears."""
        return sum(plan.weights for plan in self.linears)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user must know before using the result."""
        notes = []
        if any(plan.on_codes for plan in self.linears):
            notes.append(PRUNED_CODES)
        ternary = {plan.scheme.ternary for plan in self.linears if plan.stored.scheme.ternary}
        notes += [note for note, stays in ((TERNARY, True), (FULL_CODES, False)) if stays in ternary]
        if any(plan.permuted for plan in self.linears):
            notes.append(PERMUTED)
        if any(plan.record and plan.record.smoothed for plan in self.linears):
            notes.append(SMOOTHED)
        if self.generated:
            notes.append(
                f"Besides the calibration text, training uses {self.generated} sequences that the source model "
                "generates (generated: 0 leaves them out)."
            )
        if self.surplus:
            more = f" and {len(self.surplus) - 1} more" if len(self.surplus) > 1 else ""
            notes.append(f"Left out, since the model of config.json has no such module: {self.surplus[0]}{more}.")
        if self.snapshot.origin:
            notes.append(f"The source was {self.snapshot.origin}: errors here are against these weights.")
        if self.before:
            notes.append(
                f"Made from the checkpoint {self.snapshot.id}, itself made from {self.before.source['id']}: errors and "
                f"sizes here are against {self.snapshot.id}."
            )
        return tuple(notes)

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors of the source."""
        return sum(placed.spec.bytes for placed in self.source.tensors.values())

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(unit.bytes for shard in self.shards for unit in shard.units)

    @property
    def peak_memory(self) -> int:
        """Estimated peak of main memory in bytes of a conversion on a CPU of this machine, calibration included."""
        need = needs(self, Running("cpu")) if self.calibrated else None
        return direct_memory(self) + (need.peak if need else 0)


def make_plan(snapshot: Snapshot, recipe: Recipe, source: Checkpoint | None = None) -> Plan:
    """The plan for the files of `snapshot` and a recipe. source: the open checkpoint, if there is one already.

    Reads shapes and dtypes only. InputError for the first of all faults, with the number of the others.
    """
    source = source or Checkpoint.open(snapshot.path)
    companions(snapshot.path)  # refuses what cannot be copied at the end
    check_quantization(source.config, str(source.path))
    before = read_record(source.config, str(source.path))
    layout = recipe.layout or (before.layout if before else DENSE)
    linears: list[LinearPlan] = []
    problems: list[InputError] = []
    if recipe.preset is None and (recipe.block_epochs or recipe.end_epochs or recipe.generated):
        raise InputError(
            "block_epochs, end_epochs and generated belong to a preset, and no preset is given",
            hint="add a preset, such as --preset quality",
        )
    architecture = architecture_of(source.config)
    choices = {linear: recipe.for_linear(linear.name) for linear in architecture.decoder_linears(source.config)}
    for linear, config in choices.items():
        try:
            linears.append(plan_linear(source, linear, config, recipe.preset, before, layout))
        except InputError as error:
            problems.append(error)
    if _recovery(recipe, linears):
        linears = [plan.in_training for plan in linears]
    problems += sibling_problems(linears)
    described = shapes_of(empty_model(source))
    problems += model_faults(source, described, [plan.stored for plan in linears])
    if recipe.preset and recipe.preset.permute:
        linears = permuted(linears, architecture.free_channels(source.config).values())
    own = OWN.get(layout)
    if own and linears and not any(plan.format is own for plan in linears):
        problems.append(
            InputError(f"the {layout} layout is for {own.takes}; there are none", hint=f"use --layout {DENSE}")
        )
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise InputError(problems[0].what + more, hint=problems[0].hint)
    unused = [rule.match for rule in recipe.rules if not _matches(rule.match, linears)]
    if unused:
        raise InputError(
            f"rule '{unused[0]}' matches no linear",
            hint=f"names look like {linears[0].linear.name}; * matches any part",
        )
    tied, surplus = _tied_copies(source, architecture), surplus_tensors(source, described)
    replaced = {spec.name for plan in linears for spec in plan.stored.tensors} | {*tied, *surplus}
    specs = [placed.spec for name, placed in source.tensors.items() if name not in replaced]
    specs += [spec for plan in linears for spec in plan.outputs]
    shards = divide(specs, architecture.layer_of, recipe.shard_bytes)
    plan = Plan(source, snapshot, recipe, layout, tuple(linears), shards, before, tied, surplus)
    if recipe.smooth is not None and not plan.smoothable:
        raise InputError(
            "smooth has no effect: it needs calibration, and linears stored in bfloat16 or float32 whose inputs are "
            "quantized to 8-bit integers",
            hint="omit it, or choose a calibrated --method or a --preset, with --scheme int8",
        )
    return plan


def _recovery(recipe: Recipe, linears: Sequence[LinearPlan]) -> Recovery | None:
    """How the remaining weights of these linears are trained; None if they are not, or if none loses anything."""
    if not any(plan.loses for plan in linears):
        return None
    return recipe.recovery(groups=any(plan.whole for plan in linears if not plan.kept))


def _matches(pattern: str, linears: list[LinearPlan]) -> bool:
    return any(fnmatchcase(plan.linear.name, pattern) for plan in linears)


def _tied_copies(source: Checkpoint, architecture: Architecture) -> tuple[str, ...]:
    """The name of a head that config.json ties to the embedding but the source stores as well; else nothing."""
    head = f"{architecture.head}.weight"
    both = {head, f"{architecture.embedding}.weight"} <= source.tensors.keys()
    return (head,) if architecture.is_tied(source.config) and both else ()
