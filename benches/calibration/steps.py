"""What a step of training takes, by layer and end to end: milliseconds, kernels, and which kernels take longest.

    python -m benches.calibration.steps MODEL TEXT --pattern 2_4 --scheme int8
    python -m benches.calibration.steps MODEL TEXT --sparsity 0.5 --device cpu --samples 16 --length 64

MODEL is pruned by Wanda, since masks do not change what a step takes, and trained for one epoch each way with the
batches of preset `quality`. On a CPU, operations are counted instead of kernels, about as many.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from slideconvert.calibrate.run import RunSettings
from slideconvert.convert.pipeline import convert
from slideconvert.hub.source import resolve
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import parse_recipe
from slideconvert.recover.run import Run

WARM, TIMED, SEEN = 4, 8, 2
"""Steps before the clock starts (a graph is captured in the third), those timed, and those that the profiler sees."""
NOTHING = ("empty", "empty_like", "empty_strided", "detach", "_unsafe_view")
"""Operations that compute nothing."""


class DoneError(Exception):
    """The last training has been measured."""


@dataclass
class Steps:
    """Of one training: seconds of each timed step; of a step, the kernels, the milliseconds of a GPU (None on a CPU),
    and by_name these milliseconds, on a CPU how many there are."""

    seconds: list[float] = field(default_factory=list)
    kernels: float = 0
    busy: float | None = None
    by_name: Counter[str] = field(default_factory=Counter)


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, by name: about as many kernels run them on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        view = any(value.alias_info and not value.alias_info.is_write for value in returned)
        name = func.overloadpacket.__name__
        if not view and not name.startswith("_record") and name not in NOTHING:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


class Meter:
    """Measures the first steps of the first run of each kind; ends all with DoneError after the last kind."""

    def __init__(self, device: str, kinds: list[str]) -> None:
        self.found: dict[str, Steps] = {}
        self._cuda, self._kinds = device.startswith("cuda"), kinds
        self._done = weakref.WeakKeyDictionary[Run, int]()
        self._step = Run.step

    def step(self, run: Run, numbers: Tensor, rate: float) -> None:
        """Replaces Run.step."""
        kind = self._kinds[run._options.state is not None]
        done = self._done[run] = self._done.get(run, 0) + 1
        found = self.found.setdefault(kind, Steps())
        if done <= WARM or len(found.seconds) == TIMED:
            self._step(run, numbers, rate)
            return
        self._wait()
        begun = time.perf_counter()
        self._step(run, numbers, rate)
        self._wait()
        found.seconds.append(time.perf_counter() - begun)
        if len(found.seconds) < TIMED:
            return
        self._see(found, run, numbers, rate)
        if kind == self._kinds[-1]:
            raise DoneError

    def _see(self, found: Steps, run: Run, numbers: Tensor, rate: float) -> None:
        if not self._cuda:
            with Operations() as operations:
                self._step(run, numbers, rate)
            found.kernels, found.by_name = operations.by_name.total(), operations.by_name
            return
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(SEEN):
                self._step(run, numbers, rate)
            self._wait()
        events: list[Any] = list(seen.events() or [])
        for event in events:
            found.by_name[event.name] += event.device_time / 1e3 / SEEN
        found.kernels, found.busy = len(events) / SEEN, found.by_name.total()

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("text", type=click.Path(exists=True))
@click.option("--scheme", default="int8")
@click.option("--pattern", default="2_4")
@click.option("--sparsity", type=float, help="GQSA instead, with this share of the groups pruned.")
@click.option("--samples", default=128)
@click.option("--length", default=512)
@click.option("--top", default=8, help="So many kernels by name.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(model: Path, text: str, device: str, sparsity: float | None, top: int, **words: Any) -> None:
    """Train MODEL on TEXT, and print a table."""
    kind = {"scheme": words["scheme"], "pattern": words["pattern"], "method": "wanda"}
    if sparsity is not None:
        kind = {"method": "gqsa", "scheme": "w4a16", "sparsity": str(sparsity)}
    calibration = {"text": text, "samples": str(words["samples"]), "length": str(words["length"])}
    training = {"block_epochs": "1", "end_epochs": "1", "generated": "0"}
    recipe = parse_recipe({"preset": "quality", "layout": "dense", "calibration": calibration, **kind, **training}, "")
    meter = Meter(device, ["by layer", "end to end"])
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Run, "step", lambda run, numbers, rate: meter.step(run, numbers, rate)),
    ):
        plan = make_plan(resolve(str(model)), recipe)
        with contextlib.suppress(DoneError):
            convert(plan, Path(folder) / "out", settings=RunSettings(device), verify=False)
    click.echo(f"{model.name}, {kind}, {words['length']} tokens\n")
    click.echo("| a step of training | ms, least and median | kernels | ms of the GPU |")
    click.echo("|---|---:|---:|---:|")
    for name, steps in meter.found.items():
        middle = sorted(steps.seconds)[len(steps.seconds) // 2]
        timed = f"{1e3 * min(steps.seconds):.1f}, {1e3 * middle:.1f}"
        busy = "" if steps.busy is None else f"{steps.busy:.1f}"
        click.echo(f"| {name} | {timed} | {steps.kernels:.0f} | {busy} |")
    for name, steps in meter.found.items():
        click.echo(f"\n{name}:")
        for kernel, took in steps.by_name.most_common(top):
            click.echo(f"  {took:10.3f}  {kernel[:100]}")


if __name__ == "__main__":
    main()
