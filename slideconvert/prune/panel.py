"""A panel of columns of the sweep: each pruned or rounded in turn, those behind it in the panel make up for it.

These are some ten small operations a column. A GPU carries them out faster than they can be started one by one, so
there they are recorded once as a CUDA graph and replayed panel after panel.
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
    """Columns of a weight with N rows, one tensor row each, and what becomes of them. All written in place.

    values [columns, N] float32: the weights, with what they made up for. kept [columns, N] float32: 1 where they
    stay. made [columns, N]: codes of the scheme, or float32. errors [columns, N] float32: (w - q) / U_cc.
    corner [columns, columns] float32: U of these columns. scale, zero [columns, N] float32: of the codes, the zero
    points of grouped schemes; scale 1 without codes.
    """

    values: Tensor
    kept: Tensor
    made: Tensor
    errors: Tensor
    corner: Tensor
    scale: Tensor
    zero: Tensor

    def copy_(self, other: Panel, *names: str) -> None:
        """Take over another's contents, of the same shapes: all, or what is named."""
        for name in names or vars(self):
            getattr(self, name).copy_(getattr(other, name))


def prune_panel(panel: Panel, choose: BlockPattern | None, scheme: Scheme | None) -> None:
    """Fill `made` and `errors`. choose: decide `kept` on the way, block after block. scheme: round to codes."""
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
    """prune_panel for panels of one shape on a GPU: recorded once, replayed with other contents."""

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
            prune_panel(self._panel, choose, scheme)  # once as it is: what initializes itself must not be recorded
            self._graph.capture_begin(capture_error_mode="thread_local")
            prune_panel(self._panel, choose, scheme)
            self._graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self, panel: Panel) -> None:
        self._panel.copy_(panel)
        self._graph.replay()
        panel.copy_(self._panel, "kept", "made", "errors")  # nobody reads the rest


@lru_cache(maxsize=32)
def replay(shape: tuple[int, int], choose: BlockPattern | None, scheme: Scheme | None, device: torch.device) -> Replay:
    """The recording for panels [columns, N] = shape; the layers of a model have but a few shapes."""
    return Replay(shape, choose, scheme, device)
