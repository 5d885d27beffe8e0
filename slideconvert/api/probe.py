"""Measure how fast this machine converts, on small models, and tell how long a planned conversion takes."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CalibrationWarning, InputError
from ..plan.calibration import GENERATED_AT_ONCE, Calibration
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..plan.recipe import Recipe
from ..plan.seconds import CALIBRATE, PLAN, Forecast, Shares, Size, Trial, Trials, predict
from ..progress import Progress, Stopwatch, silent
from .convert import convert_source
from .miniature import LAYERS, SHORTEST, narrowed, numbers, write_miniature
from .options import OutputOptions, PlanOptions, SourceOptions, TargetOptions
from .settings import settings_of

NARROWEST = 256
"""Width of the narrowest model."""
CALIBRATED_GROWTH, GROWTH = 3, 2
"""The power of the width with which the time of a trial grows at most: the sequences are longer as well, and solvers
grow with the cube."""
MEASURED = ("source", "output")
"""The stages of `--text`, which are not estimated."""


@dataclass(frozen=True)
class Pace:
    """What trials may take on a device. seconds: of all trials after the first, which warms up; what is in work at the
    end is finished. few, many: sequences; one in eight is held out. growth: how much longer the second width may take
    than the first, at most what its power of the width says."""

    seconds: float
    few: int
    many: int
    growth: float


PACES = {"cpu": Pace(45.0, 8, 16, math.inf), "cuda": Pace(45.0, 16, 48, 2.0)}
"""By device type. On a GPU the time of a narrow model is that of launching kernels, which hardly grows with the width:
its trials reach the planned width, with enough steps of training for graphs."""


def probe(
    plan: Plan,
    options: PlanOptions,
    out: str | Path | None = None,
    *,
    begun: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Forecast:
    """How long `convert` takes for a plan that was made with these options, by stage, on this machine and its device.

    It converts small models of the plan's shapes, scaled down, with random weights, at the pace of the device (PACES),
    in a temporary folder on the disk of `out`. options.ranks: how many processes would share the conversion, each on
    such a device. begun: seconds of stages that making the plan took as well, such as that of `plan`. InputError for a
    device that is not here, a source that is quantized or pruned already, and layers that are not converted alike.

        >>> options = PlanOptions(method="magnitude", device="cpu")
        >>> list(slideconvert.probe(slideconvert.plan(model, options), options).stages)
        ['check', 'convert', 'finish', 'verify']
    """
    began, device = time.monotonic(), settings_of(options).device
    kind = device.partition(":")[0]
    _check(plan)
    where = Path(out).absolute().parent if out else None
    with tempfile.TemporaryDirectory(prefix=".slideconvert-probe-", dir=where and _existing(where)) as scratch:
        trials = _Bench(plan, options, Path(scratch), PACES[kind], GENERATED_AT_ONCE[kind], progress).trials()
    size, ranks = Size.of(plan), options.ranks or 1
    found = predict(size, trials, Shares.of(plan, ranks), GENERATED_AT_ONCE[kind])
    stages: dict[str, float | None] = {**(begun or {})}
    stages |= {stage: found.get(stage) for stage in trials.few.stages if stage != PLAN}
    stages |= dict.fromkeys(MEASURED if options.text else ())
    progress("probe", 1, 1)
    return Forecast(stages, device, ranks, size, (trials.many or trials.few).size, time.monotonic() - began)


@dataclass
class _Bench:
    """Trials in a folder. at_once: tokens of the sequences that the model generates together."""

    plan: Plan
    options: PlanOptions
    folder: Path
    pace: Pace
    at_once: int
    progress: Progress
    began: float = math.inf
    """When the trial ended that warms up, of time.monotonic."""
    shorter: int = 1
    """By how much sequences are shorter than in proportion to the width, to save time."""

    def trials(self) -> Trials:
        """The narrowest model, once to warm up, then ever wider ones while time is left for the next."""
        config, calibrated, pace = self.plan.source.config, self.plan.calibrated, self.pace
        halvings, power = _halvings(config), CALIBRATED_GROWTH if calibrated else GROWTH
        # The next model with few and with many sequences, against the same model with few.
        both = 1 + pace.many / pace.few if calibrated else 1
        self._trial(halvings, pace.few, SHORTEST)
        now = self.began = time.monotonic()
        found: list[Trial] = []
        times: list[float] = []
        while True:
            found.append(self._trial(halvings, pace.few))
            before, now = now, time.monotonic()
            times.append(now - before)
            if halvings == 0:
                break
            wider = narrowed(config, halvings - 1)["hidden_size"] / narrowed(config, halvings)["hidden_size"]
            # Where launches take the time, the next width may be the first to take more.
            growth = 2 * times[-1] / times[-2] if len(times) > 1 else pace.growth
            excess = both * min(wider**power, growth) * times[-1] / max(self.began + pace.seconds - now, 1.0)
            if len(found) > 1 and excess > 1:
                break
            if excess > 2:  # nothing tells more than a second width
                self.shorter = 1 << math.ceil(math.log2(excess / 2))
            halvings -= 1
        many = self._trial(halvings, pace.many) if calibrated else None
        return Trials(found[max(0, len(found) - 2)], found[-1], many)

    def _trial(self, halvings: int, samples: int, most: int | None = None) -> Trial:
        """Convert the model that is narrower by so many halvings. most: tokens of a sequence."""
        config = narrowed(self.plan.source.config, halvings)
        source = self.folder / f"model-{halvings}"
        if not source.exists():
            write_miniature(source, config)
        wanted = Size.of(self.plan)
        length = wanted.length * config["hidden_size"] // (int(self.plan.source.config["hidden_size"]) * self.shorter)
        length = max(min(SHORTEST, wanted.length), min(length, most or length))
        # What is generated in a single round tells the time of a step.
        in_a_round = max(1, self.at_once // length) * samples // self.pace.many
        generated = min(wanted.generated * samples // wanted.samples, in_a_round) if wanted.generated else 0
        text = numbers(config["vocab_size"], (samples + 1) * length)
        recipe = replace(self._recipe, calibration=Calibration(text, samples, length))
        solved = samples
        if self.plan.recovery:
            recipe = replace(recipe, generated=generated)
            solved += self.plan.recovery.layer_generated(samples, generated)
        marks: dict[int, float] = {}

        def watched(stage: str, done: int, _total: int) -> None:
            now = time.monotonic()
            if stage == CALIBRATE:
                marks[done] = now
            whole = int(10 * self.pace.seconds)
            self.progress("probe", min(int(10 * max(now - self.began, 0.0)), whole - 1), whole)

        watch = Stopwatch(watched)
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(dir=self.folder) as out:
            warnings.simplefilter("ignore", CalibrationWarning)
            report = convert_source(source, Path(out) / "out", recipe, self._options, watch).report
        size = Size(LAYERS, report.totals.weights, samples, generated, solved, length)
        layer = (marks[LAYERS] - marks[1]) / (LAYERS - 1) if marks else None
        return Trial(size, {name: stage.seconds for name, stage in watch.stages.items()}, layer)

    @property
    def _options(self) -> PlanOptions:
        """The options of the conversion that matter to a source in a folder and to an output that is not measured."""
        kept = {*vars(SourceOptions()), *vars(OutputOptions()), *vars(TargetOptions())} - {"verify"}
        return replace(self.options, **{one.name: one.default for one in self.options.options() if one.name in kept})

    @property
    def _recipe(self) -> Recipe:
        """The recipe of the plan, with those of its rules that meet a linear of the first layers, and with all epochs
        of one training: how often it restarts, and when it ends, depends on the model and the text."""
        names = [linear.linear.name for linear in self.plan.linears if linear.linear.layer < LAYERS]
        rules = [rule for rule in self.plan.recipe.rules if rule in map(self.plan.recipe.rule_for, names)]
        preset = self.plan.recipe.preset
        if preset:
            once = [replace(one, retries=0, patience=0) for one in (preset.recovery, preset.group_recovery)]
            preset = replace(preset, recovery=once[0], group_recovery=once[1])
        return replace(self.plan.recipe, rules=tuple(rules), preset=preset)


def _halvings(config: dict[str, Any]) -> int:
    """How often a model is made half as wide for the first trial: at least once, if that makes it narrower."""
    halvings = 1 if narrowed(config, 1)["hidden_size"] < config["hidden_size"] else 0
    while halvings and narrowed(config, halvings)["hidden_size"] > NARROWEST:
        halvings += 1
    return halvings


def _check(plan: Plan) -> None:
    """InputError for a plan that small models with random weights do not stand for."""
    if plan.before or plan.source.config.get("quantization_config"):
        raise InputError(
            f"--probe times random BF16 weights, and those of {plan.snapshot.id} are quantized or pruned already",
            hint="omit it, or plan the conversion of the BF16 model",
        )
    kinds: dict[str, tuple[Any, ...]] = {}
    for linear in plan.linears:
        treated = _treated(linear)
        first = kinds.setdefault(linear.linear.submodule, treated)
        if treated != first:
            raise InputError(
                f"--probe: {linear.linear.name} is converted to {' '.join(map(str, treated))}, in the first layer to "
                f"{' '.join(map(str, first))}; it times layers that are alike",
                hint="omit it, or leave out rules for single layers and targets",
            )


def _treated(linear: LinearPlan) -> tuple[Any, ...]:
    return (linear.scheme.name, str(linear.pattern), "kept" if linear.kept else linear.method, linear.stored.shape)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())
