"""rotate: other weights for the same function, of which pruning loses less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..api.options import RotateOptions
from .common import echo_json, show, source_argument, timed_progress
from .options import Display, command

if TYPE_CHECKING:
    from ..rotate.run import Rotated
    from .columns import Table


@command("rotate", RotateOptions)
@source_argument
@click.argument("rotated", type=click.Path(path_type=Path))
def rotate_command(source: str, rotated: Path, options: RotateOptions, display: Display) -> None:
    """Rotate the channels of the model SOURCE (a folder, a Hub id or a GGUF file) and write it into the folder ROTATED.

    \b
      slideconvert rotate MODEL ROTATED --pattern 2_4 --calibration my.jsonl

    ROTATED computes the same function with weights of which pruning to --pattern loses less; `convert` takes it like
    any other model. The rotations are searched for with the calibration text, and folded into the weights: nothing is
    rotated at run time.
    """
    from ..api.rotate import rotate
    from ..api.settings import choose_device

    with timed_progress(display.shown, choose_device(options.device)) as watch:
        done = rotate(source, rotated, options, progress=watch)
    record = done.record
    if display.as_json:
        echo_json(
            {
                "out": str(rotated),
                "source": record.source["id"],
                "revision": record.source["revision"],
                "pattern": record.pattern,
                "parts": record.parts,
                "loss_before": list(record.before),
                "loss_after": list(record.after),
                "untied_head_bytes": done.untied,
                "verified_tensors": done.verified,
                "stages": {name: round(stage.seconds, 3) for name, stage in watch.stages.items()},
            }
        )
    elif display.shown:
        if display.verbose:
            show(losses_table(done))
        show(summary(done, rotated))


def losses_table(done: Rotated) -> Table:
    """The estimated loss of each layer."""
    from .columns import table

    made = table("Estimated loss of pruning", ["layer"], ["before", "after"])
    for number, losses in enumerate(zip(done.record.before, done.record.after, strict=True)):
        made.add_row(str(number), *(f"{loss:.4f}" for loss in losses))
    return made


def summary(done: Rotated, out: Path) -> str:
    """The losses, what changed in the model, and the next command."""
    record = done.record
    before, after = (sum(losses) / len(losses) for losses in (record.before, record.after))
    pattern = record.pattern.replace(":", "_")
    lines = [f"loss     {before:.4f} → {after:.4f} of a linear's output, estimated for {record.pattern}"]
    if done.untied:
        lines.append(
            f"head     was tied to the embedding, is a matrix of its own now: {done.untied / 1e6:,.1f} MB more"
        )
    checked = "not read back (--no-verify)" if done.verified is None else f"{done.verified} tensors re-read, intact"
    lines += [f"verify   {checked}", f"wrote    {out}", f"next     slideconvert convert {out} OUT --pattern {pattern}"]
    return "\n".join(lines)
