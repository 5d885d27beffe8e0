"""An allocation as a summary and as a recipe file that people can edit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .. import __version__
from ..checkpoint.staging import check_new_file, writing
from ..plan.recipe import recipe_text
from .choose import Chosen, SpeedTarget
from .speed import SpeedTable


def write_recipe(path: Path, chosen: Chosen, source: str) -> None:
    """Write the recipe of an allocation for the model `source` as a new file. InputError if it cannot be written."""
    check_new_file(path)
    head = (
        f"Chosen by slideconvert {__version__} allocate for {source}. To be edited: the first rule that matches wins."
    )
    with writing(path), path.open("x", encoding="utf-8") as file:
        file.write(recipe_text(chosen.recipe, [head, *summary(chosen)]))


def summary(chosen: Chosen) -> list[str]:
    """Target, expected speed with the source of the times, density and error of an allocation, line by line."""
    target, found, uniform = chosen.target, chosen.allocation, chosen.best_uniform
    if isinstance(target, SpeedTarget):
        gpu = f"{target.table.gpu} at {target.tokens} tokens"
        lines = [
            f"target   linears {target.speedup:g}× as fast as dense 8-bit ones on {gpu}",
            f"speed    {found.speedup:.3f}× expected",
            *times_lines(chosen.measured, target.table),
        ]
    else:
        lines = [f"target   density {target.density:g}"]
    weights = sum(group.weights for group in found.patterns)
    best = "" if found.floor >= found.error else f", {found.floor:.3g} at best"
    against = f"; {uniform.error:.3g} with {uniform.pattern} for all" if uniform else ""
    lines += [
        f"density  {found.density:.1%} of {weights / 1e6:.1f} million weights",
        f"error    {found.error:.3g}{best}{against} (relative change of the residual stream, squared, summed)",
    ]
    if chosen.left_out:
        lines.append(
            f"note     {len(chosen.left_out)} linears are kept or stay in 16 bits; nothing was chosen for them"
        )
    return lines


def times_lines(measured: Iterable[str], table: SpeedTable) -> list[str]:
    """The measurements behind the times, and the comments of their table."""
    return [f"times    of {'; '.join(measured)}", *(f"         {line}" for line in table.source)]
