"""A panel of columns of the sweep: prune or round one column after another; the later columns of the panel compensate.

Each column takes about ten small operations. A GPU executes them faster than they can be launched, so on a GPU they are
captured once as a CUDA graph, which is replayed for every panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

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

    def copy_(self, other: Panel, *names: str) -> None:
        """Copy the tensors of another panel of the same shapes: all of them, or those of these names."""
        for name in names or vars(self):
            getattr(self, name).copy_(getattr(other, name))


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


class Replay:
    """`prune_panel` for panels of one shape on a GPU: a CUDA graph, captured once and replayed for each panel."""

    def __init__(
        self, shape: tuple[int, int], choose: BlockPattern | None, scheme: Scheme | None, device: torch.device
    ) -> None:
        columns = shape[0]
        dtype = scheme.torch_dtype if scheme else torch.float32
        self._panel = Panel(
            values=torch.zeros(shape, device=device),
            kept=torch.ones(shape, device=device),
            made=torch.zeros(shape, dtype=dtype, device=device),
            errors=torch.zeros(shape, device=device),
            corner=torch.eye(columns, device=device),
            scale=torch.ones(shape, device=device),
            zero=torch.zeros(shape, device=device),
        )
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            prune_panel(self._panel, choose, scheme)  # warm-up: lazy initialization must not be captured
            self._graph.capture_begin(capture_error_mode="thread_local")
            prune_panel(self._panel, choose, scheme)
            self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self, panel: Panel) -> None:
        self._panel.copy_(panel)
        self._graph.replay()
        panel.copy_(self._panel, "kept", "made", "errors")  # the sweep does not read the others


@lru_cache(maxsize=32)
def replay(shape: tuple[int, int], choose: BlockPattern | None, scheme: Scheme | None, device: torch.device) -> Replay:
    """The graph for panels of this shape [columns, N]; the layers of a model have only a few shapes."""
    return Replay(shape, choose, scheme, device)
