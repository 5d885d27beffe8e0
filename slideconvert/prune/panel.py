"""A panel of columns of the sweep: prune or round one column after another; the later columns of the panel compensate.

Each column takes about ten small operations. A GPU executes them faster than they can be launched, so on a GPU they
become a CUDA graph (core/captured.py), which is replayed for every panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..core.captured import Captured
from ..core.patterns import BlockPattern
from ..core.schemes import Scheme


@dataclass(frozen=True)
class Panel:
    """Some columns of a weight with N rows, transposed, with the buffers for the results; `prune_panel` works in place.

    values [columns, N] float32: the weights, compensated so far. kept [columns, N] float32: 1 for kept weights, else 0.
    made [columns, N]: the result, codes of the scheme or float32. errors [columns, N] float32: (w - q) / U_cc.
    corner [columns, columns] float32: U of these columns. scale, zero [columns, N] float32: scales and zero points of
    the codes; scale 1 without codes.
    """

    values: Tensor
    kept: Tensor
    made: Tensor
    errors: Tensor
    corner: Tensor
    scale: Tensor
    zero: Tensor


def prune_panel(panel: Panel, choose: BlockPattern | None, scheme: Scheme | None) -> None:
    """Fill `made` and `errors`, and update `values`.

    choose: the pattern to prune to, which fills `kept` block after block; None: `kept` is a fixed mask. scheme: the
    scheme of the codes to round to; None: no rounding.
    """
    values, kept, errors, corner = panel.values, panel.kept, panel.errors, panel.corner
    diagonal = corner.diagonal()[:, None]
    for column in range(len(values)):
        if choose and choose.prunes and column % choose.block == 0:
            block = slice(column, min(column + choose.block, len(values)))
            score = (values[block] / diagonal[block]).square_()
            kept[block] = choose.select(score.T.contiguous()).T
        now = values[column]
        if scheme is None:
            rounded = now * kept[column] + 0
            panel.made[column].copy_(rounded)
        else:
            scale = panel.scale[column]
            panel.made[column].copy_(scheme.to_codes(now * kept[column] / scale, panel.zero[column]))
            rounded = panel.made[column].float() * scale
        torch.div(now - rounded, diagonal[column], out=errors[column])
        values[column + 1 :].addr_(corner[column, column + 1 :], errors[column], alpha=-1)


@lru_cache(maxsize=32)
def repeated(
    shape: tuple[int, int], choose: BlockPattern | None, scheme: Scheme | None, device: torch.device
) -> Callable[[Panel], None]:
    """`prune_panel` for panels of one shape [columns, N] on a GPU: runs as a CUDA graph from the third panel on, and
    then leaves `values` as they are. The layers of a model have only a few shapes."""
    kept, errors = torch.empty(2, *shape, device=device)
    made = torch.empty(shape, dtype=scheme.torch_dtype if scheme else torch.float32, device=device)

    def run(values: Tensor, mask: Tensor, corner: Tensor, scale: Tensor, zero: Tensor) -> None:
        kept.copy_(mask)
        prune_panel(Panel(values, kept, made, errors, corner, scale, zero), choose, scheme)

    captured = Captured(run)

    def prune(panel: Panel) -> None:
        captured(panel.values, panel.kept, panel.corner, panel.scale, panel.zero)
        for found, result in ((kept, panel.kept), (made, panel.made), (errors, panel.errors)):
            result.copy_(found)

    return prune
