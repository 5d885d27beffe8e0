"""Peak GPU memory and seconds of each stage of a calibrated conversion, beside what `plan` says.

    python -m benches.calibration.memory /tmp/memory --model Qwen2.5-7B --layers 4 --pattern 2_8
    python -m benches.calibration.memory /tmp/memory --model Qwen2.5-7B --sparsity 0.5 --samples 128 --offload
    python -m benches.calibration.memory /tmp/memory --model Llama-3.2-1B --pattern 2_4 --length 2048 --minutes 9

The model has random weights with the shapes of a real one, and the text random words. One epoch by block and one end to
end by default: more take more time and no more memory. After --minutes the bench stops and prints the stages so far.
On a CPU the peak is that of the process, the same for all stages.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from benches.peak import peak_bytes
from slideconvert.bench.serving.random_model import write
from slideconvert.calibrate import engine
from slideconvert.calibrate.run import RunSettings
from slideconvert.convert.pipeline import convert
from slideconvert.hub.source import open_for_planning, resolve
from slideconvert.models.shapes import SHAPES
from slideconvert.plan.memory import direct_memory, needs
from slideconvert.plan.needs import Stage
from slideconvert.plan.plan import Plan, make_plan
from slideconvert.plan.recipe import Recipe, parse_recipe

BY_BLOCK = "train by block"
STAGES = {"generate": "generate", "calibrate": "solve", "targets": "targets", "train": "train end to end"}
"""The stages of `plan` by those of a conversion's progress."""


class OutOfTimeError(Exception):
    """The time for the bench is over."""


class Meter:
    """A Progress that takes the peak of device memory and the seconds of each stage."""

    def __init__(self, device: str, seconds: float) -> None:
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._cuda, self._end = device.startswith("cuda"), time.monotonic() + seconds
        self._since, self._stage = time.monotonic(), ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.enter(STAGES.get(stage, stage))
        if time.monotonic() > self._end:
            raise OutOfTimeError

    def enter(self, stage: str) -> None:
        """Count what has been since the last call for the stage before, or for this one if it is the first."""
        before, now = self._stage or stage, time.monotonic()
        if self._cuda:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            peak = peak_bytes()
        self.peaks[before] = max(peak, self.peaks.get(before, 0))
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._since, self._stage = now, stage


def write_source(folder: Path, model: str, layers: int | None, device: str) -> Path:
    """A random model with a tokenizer of two thousand words, and text.jsonl of them."""
    write(folder, model, layers, device)
    words = {"<s>": 0, "</s>": 1} | {f"w{number}": number + 2 for number in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def write_text(path: Path, tokens: int) -> Path:
    """Documents of a thousand random words, so many tokens in all."""
    drawn = torch.randint(0, 2000, (tokens // 1000 + 1, 1000), generator=torch.Generator().manual_seed(0))
    lines = [json.dumps({"text": " ".join(f"w{number}" for number in row)}) for row in drawn.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def plan_of_all_layers(folder: Path, model: str, recipe: Recipe) -> Plan:
    """The plan of the model with all of its layers, from a config.json in `folder` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder.parent / "source" / "config.json").read_text())
    config["num_hidden_layers"] = SHAPES[model]["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    snapshot, checkpoint = open_for_planning(str(folder))
    return make_plan(snapshot, recipe, checkpoint)


def planned(plan: Plan, settings: RunSettings) -> dict[str, int]:
    """Bytes of each stage on the device by `plan`."""
    how = settings.running
    stages: dict[str, Stage] = needs(plan, how).stages(offload=settings.offload)
    base = direct_memory(plan) if how.kind == "cpu" else 0
    stored = settings.keep_on == "device" or how.kind == "cpu"
    return {name: base + stage.device + (stage.hidden if stored else 0) for name, stage in stages.items()}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(list(SHAPES)), default="Llama-3.2-1B")
@click.option("--layers", type=int, help="Another number of layers than the model has.")
@click.option("--pattern", default="2_8", help="Of preset quality.")
@click.option("--sparsity", type=float, help="GQSA instead, with this share of the groups pruned.")
@click.option("--samples", default=16)
@click.option("--length", default=2048)
@click.option("--generated", default=0, help="Sequences that the model generates.")
@click.option("--block-epochs", default=1)
@click.option("--end-epochs", default=1)
@click.option("--offload", is_flag=True)
@click.option("--minutes", default=9.0)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(
    folder: Path, model: str, layers: int | None, device: str, minutes: float, offload: bool, **words: Any
) -> None:
    """Write a model into FOLDER, convert it, and print a table."""
    meter = Meter(device, 60 * minutes)
    shutil.rmtree(folder, ignore_errors=True)
    source = write_source(folder / "source", model, layers, device)
    text = write_text(folder / "text.jsonl", 2 * words["samples"] * words["length"])
    calibration = {"text": str(text), "samples": str(words["samples"]), "length": str(words["length"])}
    groups = words["sparsity"] is not None
    kind = {"method": "gqsa", "scheme": "w4a16", "sparsity": str(words["sparsity"])} if groups else {
        "scheme": "int8", "pattern": words["pattern"]
    }  # fmt: skip
    training = {name: str(words[name]) for name in ("block_epochs", "end_epochs", "generated")}
    common = {"preset": "quality", "layout": "dense", "calibration": calibration}
    recipe = parse_recipe({**common, **kind, **training}, "bench")
    plan = make_plan(resolve(str(source)), recipe)
    settings = RunSettings(device, "cpu" if offload else "device", offload=offload)

    recover = engine._recover

    def measured(*args: Any) -> None:
        meter.enter(BY_BLOCK)
        recover(*args)
        meter.enter(STAGES["calibrate"])

    try:
        meter.enter("setup")
        with mock.patch.object(engine, "_recover", measured):
            convert(plan, folder / "out", settings=settings, verify=False, progress=meter)
    except OutOfTimeError:
        click.echo(f"stopped after {minutes} minutes", err=True)
    meter.enter("end")
    own, whole = planned(plan, settings), planned(plan_of_all_layers(folder / "whole", model, recipe), settings)
    count = plan.source.config["num_hidden_layers"]
    options = " --offload" if offload else ""
    tokens = f"{calibration['samples']} × {calibration['length']} tokens"
    click.echo(f"{model}, {count} layers, {tokens}, {kind}{options}\n")
    click.echo("| stage | seconds | peak, GB | `plan` says, GB | `plan` of all layers, GB |")
    click.echo("|---|---:|---:|---:|---:|")
    for stage, said in own.items():
        took, peak = meter.seconds.get(stage, 0.0), meter.peaks.get(stage, 0)
        click.echo(f"| {stage} | {took:.1f} | {peak / 1e9:.2f} | {said / 1e9:.2f} | {whole[stage] / 1e9:.2f} |")


if __name__ == "__main__":
    main()
