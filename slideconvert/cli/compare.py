"""Finished checkpoints side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..api.options import CompareOptions
from .common import Folder, echo_json, show
from .options import ResultDisplay, command
from .progress import progress_bar

if TYPE_CHECKING:
    from ..compare.result import Compared
    from .columns import Table


@command("compare", CompareOptions, ResultDisplay, without=("verbose",))
@click.argument("ckpts", metavar="CKPT...", nargs=-1, required=True, type=Folder())
def compare_command(ckpts: tuple[Path, ...], options: CompareOptions, display: ResultDisplay) -> None:
    """Put finished checkpoints side by side: size, bits, patterns, quality, expected speed, output error by layer.

    \b
      slideconvert compare a/ b/ --baseline MODEL --gpu h200 --out compare.html
      slideconvert compare a/ b/ --baseline MODEL --text wiki.txt

    Quality is what the conversions reported, or with --text what is measured now. The speed is that of the linears by
    the times of a GPU (--speed-table for those that bench layer measured on yours). With --out also as a page.
    """
    from ..api.compare import compare

    with progress_bar(display.shown) as progress:
        found = compare(ckpts, options, progress=progress)
    if display.as_json:
        echo_json(found.to_json())
        return
    show(sides_table(found))
    if found.layers:
        show(layers_table(found))
    for note in found.notes:
        show(f"note     {note}")
    if options.out:
        show(str(options.out))


def sides_table(found: Compared) -> Table:
    """One row a checkpoint."""
    from ..compare.texts import counted, kl_text, perplexity_text, same_top_text, speed_text
    from ..report.summary import size
    from .columns import Column, table
    from .scores import CHECKPOINT

    labels = [CHECKPOINT, Column("pattern", 2), Column("scheme", 6)]
    numbers = [Column("size", 4), Column("bits"), Column("KL"), Column("perplexity", 3), Column("same top", 5)]
    speed = [Column(f"on {found.gpu}", 1)] if found.gpu else []
    made = table("Checkpoints: bits per weight of the linears, KL from the source", labels, [*numbers, *speed])
    for side in found.sides:
        one, quality = side.entry, side.quality
        words = [one.name, counted(one.patterns), counted(one.schemes), size(one.bytes), f"{one.bits:.2f}"]
        words += [kl_text(quality), perplexity_text(quality), same_top_text(quality)]
        made.add_row(*words, *([speed_text(side.speedup)] if found.gpu else []))
    return made


def layers_table(found: Compared) -> Table:
    """One row a decoder layer, one column a checkpoint that has output errors."""
    from ..errors import UNKNOWN
    from ..report.summary import percent
    from .columns import Column, path_name, table

    shown = [side.entry for side in found.sides if side.entry.output_errors]
    columns = [Column(one.name, spare, path_name) for spare, one in enumerate(shown)]
    made = table("Output error by decoder layer, mean of its linears", ["layer"], columns)
    errors = [one.mean_errors() for one in shown]
    for layer in found.layers:
        made.add_row(str(layer), *(percent(own[layer]) if layer in own else UNKNOWN for own in errors))
    return made
