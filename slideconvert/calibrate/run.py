"""A complete calibration: generated text, all layers, then end-to-end training. Each finished step is saved for
--resume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from .. import ranks
from ..checkpoint.staging import write_file, writing
from ..core.choices import PLACES, PRECISIONS
from ..core.precision import running_dtype
from ..core.quantize import Weight
from ..errors import OutputError, SlideConvertError, pick
from ..models.families import architecture_of
from ..models.load import load_model, running_model
from ..plan.calibration import BATCH_TOKENS, Running
from ..plan.plan import Plan
from ..plan.presets import KL, Recovery
from ..progress import Progress
from ..recover.options import Curve, Schedule, TrainingOptions
from ..report import Training
from .engine import compress_layers
from .generate import generate
from .result import LayerResult
from .store import LayerStore
from .stream import StreamOptions, held_out
from .whole_model import train_whole_model

END_TO_END = "end to end"
"""The name of the training of all layers in reports."""
GENERATED = "generated.safetensors"
"""The file of the generated sequences, among the finished steps."""
HIDDEN = "hidden"
"""The folder of hidden states on disk, among the finished steps."""


@dataclass(frozen=True)
class RunSettings:
    """How a calibration runs. Results depend on it only through rounding.

    device: where the model computes. keep_on: where hidden states are stored between layers (device, cpu, disk).
    batch_tokens: tokens that run through a layer at once, None for the default of the device. offload: keep in CPU
    memory what training end to end needs of one layer at a time (training.TrainingOptions). precision: of the running
    model, an argument of precision.running_dtype. InputError for unknown names.
    """

    device: str = "cpu"
    keep_on: str = "device"
    batch_tokens: int | None = None
    offload: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        pick(self.keep_on, PLACES, "place for hidden states")
        pick(self.precision, PRECISIONS, "precision")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which layers run."""
        return running_dtype(self.precision, torch.device(self.device))

    @property
    def running(self) -> Running:
        """These settings as the estimates of memory take them."""
        return Running(torch.device(self.device).type, self.batch_tokens, self.precision)

    @property
    def tokens_at_once(self) -> int:
        """Tokens that run through a layer at once."""
        return self.batch_tokens or BATCH_TOKENS.get(torch.device(self.device).type, BATCH_TOKENS["cpu"])

    def stream_options(self, folder: Path) -> StreamOptions:
        """These settings for streams. folder: for hidden states on disk."""
        own = folder / str(ranks.number())
        return StreamOptions(torch.device(self.device), self.keep_on, own, self.tokens_at_once, self.dtype)


LESS_MEMORY = (
    "continue with --resume and --offload (or --keep-on disk), or restart with a lower --batch-tokens, "
    "fewer --samples or --generated 0"
)
"""What to do where a calibration runs out of memory; finished steps remain."""


@contextmanager
def memory_options_named(
    device: str, hint: str = LESS_MEMORY, kind: type[SlideConvertError] = OutputError
) -> Iterator[None]:
    """An error of this kind if the block runs out of memory on `device`, with the options to lower as its hint."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise kind(f"out of memory on {device}: {str(error).splitlines()[0]}", hint=hint) from error


def compressed_layers(
    plan: Plan, tokens: Tensor, settings: RunSettings, folder: Path, progress: Progress
) -> Iterator[LayerResult]:
    """tokens [sequences, length] int64 -> the final result of each layer, in order. folder: for finished layers.

    OutputError if the device runs out of memory, with the options to lower; finished layers remain.
    """
    store = LayerStore(folder, "layer")
    options = settings.stream_options(folder / HIDDEN)
    recovery = plan.recovery
    ends = recovery is not None and recovery.end_epochs > 0
    by_block = block_schedule(recovery) if recovery else None
    with memory_options_named(settings.device):
        if plan.generated:
            tokens = torch.cat([generated_tokens(plan, tokens, settings, folder, progress), tokens])
        finished = int(ranks.agreed(store.finished))
        results = compress_layers(
            plan,
            tokens,
            options,
            recovery=by_block,
            done=lambda number: store.load(number) if number < finished else None,
            progress=progress,
        )
        for number, result in results:
            if number >= finished and ranks.first():
                store.save(number, result)
            if not ends:
                yield result
        if ends:
            assert recovery is not None
            yield from _trained(plan, tokens, settings, store, recovery, progress)


def generated_tokens(plan: Plan, tokens: Tensor, settings: RunSettings, folder: Path, progress: Progress) -> Tensor:
    """The sequences [plan.generated, length] int64 that the source model generates, from calibration sequences that are
    not held out. They are kept in a file of `folder`, and read from it if it exists."""
    path = folder / GENERATED

    def known() -> Tensor:
        kept: Tensor = load_file(path)["tokens"]
        return kept

    if not ranks.agreed(path.is_file()):
        model = load_model(plan.source, activations="float", device=settings.device, weights=settings.dtype)
        fitted, _ = held_out(len(tokens))
        with running_model(plan.source):
            made: Tensor = generate(
                model, tokens[fitted], plan.generated, plan.recipe.calibration.seed, settings.dtype, progress
            )
        if ranks.first():
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_file(path, save({"tokens": made}))
    return ranks.given(known)


def block_schedule(recovery: Recovery) -> Schedule | None:
    """The schedule of block recovery, None without it."""
    return _schedule(recovery, recovery.block_epochs, recovery.block_rate, recovery.block_batch)


def _schedule(recovery: Recovery, epochs: int, rate: float, batch: int) -> Schedule | None:
    if not epochs:
        return None
    fields = {name: getattr(recovery, name) for name in ("relative", "patience", "retries")}
    return Schedule(epochs, rate, batch, **fields)


def trainings(number: int, result: LayerResult) -> tuple[Training, ...]:
    """The trainings of a layer, for a report."""
    named = ((f"layer {number}", result.curve), (END_TO_END, result.end))
    return tuple(
        Training(name, _reported(curve.losses), curve.best, curve.skipped, curve.restarts)
        for name, curve in named
        if curve
    )


def _reported(losses: tuple[float, ...]) -> tuple[float | None, ...]:
    """Losses for JSON, which has no infinity or NaN: None."""
    return tuple(loss if math.isfinite(loss) else None for loss in losses)


def _trained(
    plan: Plan, tokens: Tensor, settings: RunSettings, store: LayerStore, recovery: Recovery, progress: Progress
) -> Iterator[LayerResult]:
    """The results of all compressed layers after end-to-end recovery."""
    count = len({linear.linear.layer for linear in plan.linears})
    trained = LayerStore(store.folder, "trained")
    if not ranks.agreed(trained.path(count - 1).is_file()):
        results = [store.load(number) for number in range(count)]
        found = [result for result in results if result is not None]
        made, curve = train_end_to_end(plan, found, tokens, settings, recovery, store.folder, progress)
        for number, result in enumerate(found):
            prefix = f"{architecture_of(plan.source.config).layer(number)}."
            own = {name.removeprefix(prefix): weight for name, weight in made.items() if name.startswith(prefix)}
            if ranks.first():
                trained.save(number, replace(result, weights=own, end=curve))
        ranks.gate()
    for number in range(count):
        last = trained.load(number)
        assert last is not None
        yield last


def train_end_to_end(
    plan: Plan,
    found: list[LayerResult],
    tokens: Tensor,
    settings: RunSettings,
    recovery: Recovery,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Weight], Curve]:
    """End-to-end recovery of all layers: trained weights by name, and losses.

    found: results of all layers, in order. tokens [sequences, length] int64, the generated ones first. folder: for the
    state after each epoch, from which an interrupted training continues, and for hidden states on disk.
    """
    schedule = _schedule(recovery, recovery.end_epochs, recovery.end_rate, recovery.end_batch)
    assert schedule is not None
    return train_whole_model(
        plan,
        found,
        tokens,
        settings.stream_options(folder / HIDDEN),
        schedule,
        TrainingOptions(
            offload=settings.offload,
            dtype=settings.dtype,
            state=folder / "training.safetensors",
            progress=lambda done, total: progress("train", done, total),
        ),
        taught=recovery.loss == KL,
        progress=progress,
    )
