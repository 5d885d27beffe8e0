"""The sweep of SparseGPT and GPTQ: prune or round one column after another; the later columns compensate.

Optimal Brain Surgeon for a row w and the damped Gram matrix H: setting w_c to q costs (w_c - q)² / [H⁻¹]_cc, and the
other weights compensate best by moving - (w_c - q) / [H⁻¹]_cc · [H⁻¹]_c,:. Visited columns are fixed, so H⁻¹ is
that of the remaining columns, and one upper triangular factor holds all of these inverses, H⁻¹ = UᵀU: the error is
e = (w_c - q) / U_cc, the update - e · U_c,: (SparseGPT, arXiv 2301.00774, algorithm 1; GPTQ, arXiv 2210.17323).

The sweep visits whole blocks of L columns: at the first column of a block it marks the two weights with the lowest
(w_c / U_cc)². Panels of lazily updated columns therefore hold whole blocks; panels of 128 columns would split blocks of
6, 10, 12 and 14 and break the pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.patterns import BlockPattern
from ..core.quantize import Grid, QuantizedWeight, Weight
from .panel import Panel, prune_panel, repeated
from .problem import Total, alone

PANEL = 32
"""Columns that are updated at once, at most: short enough that updates within a panel stay cheap."""
DAMPING = 0.01
"""Added to the diagonal of the Gram matrix, as a share of its mean (SparseGPT's and llm-compressor's default)."""


@dataclass(frozen=True)
class Damped:
    """A Gram matrix [K, K] made safe to invert.

    gram: float32, positive definite. lower: its Cholesky factor, gram = lower · lowerᵀ. dead [K] bool: inputs that
    are always zero, so that their weights have no effect. notes: every increase of the damping.
    """

    gram: Tensor
    lower: Tensor
    dead: Tensor
    notes: tuple[str, ...] = ()

    def solve(self, rows: Tensor) -> Tensor:
        """rows [N, K] -> rows · gram⁻¹ [N, K]."""
        return torch.cholesky_solve(rows.T, self.lower).T

    @property
    def inverse_diagonal(self) -> Tensor:
        """[K] the diagonal of gram⁻¹."""
        eye = torch.eye(len(self.gram), device=self.gram.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.lower, eye, upper=False)
        return inverse.square().sum(0)


def damp(gram: Tensor, share: float = DAMPING) -> Damped:
    """gram [K, K] float32, positive semi-definite up to rounding -> Damped.

    Adds `share` of the mean diagonal to the diagonal. If the Cholesky factorization fails, adds 10, 100 and 1000 times
    as much, each noted, and at last 10 % of each diagonal entry. ArithmeticError if that fails too.
    """
    diagonal = gram.diagonal()
    dead = diagonal == 0
    alive = diagonal[~dead]
    mean = alive.mean() if len(alive) else torch.ones((), device=gram.device)
    notes: list[str] = []
    for times in (1, 10, 100, 1000, None):
        damped = gram.clone()
        more = diagonal * 0.1 if times is None else (share * times * mean).expand_as(diagonal)
        damped.diagonal().add_(torch.where(dead, torch.ones_like(diagonal), more))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return Damped(damped, lower, dead, tuple(notes))
        damping = "10 % of each diagonal entry" if times is None else f"{share * times:g} of the mean diagonal"
        notes = [f"the Gram matrix was not positive definite with a damping of {damping} or less; more was used"]
    raise ArithmeticError("the Gram matrix is not positive definite even with 10 % of each diagonal entry added")


def free_factor(gram: Tensor, order: Tensor) -> Tensor:
    """gram [K, K] positive definite -> U [K, K] upper triangular with UᵀU = (gram in that order of columns)⁻¹.

    U is the inverse of the Cholesky factor of the reversed matrix: one factorization, no explicit inverse.
    ArithmeticError if rounding leaves no factor.
    """
    backwards = order.flip(0)
    lower, failed = torch.linalg.cholesky_ex(gram[backwards[:, None], backwards])
    if int(failed):
        raise ArithmeticError("the Gram matrix is positive definite only to rounding")
    eye = torch.eye(len(gram), device=gram.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return factor


def block_order(weight: Tensor, damped: Damped, pattern: BlockPattern, total: Total = alone) -> Tensor:
    """weight [N, K] -> order [K] int64 of the columns: blocks of largest predicted pruning loss first.

    More columns can compensate for what is pruned early. A ragged last block stays last. total: of a Problem.
    """
    columns = weight.shape[1]
    score = weight.square() / damped.inverse_diagonal
    lost = total((score * ~pattern.select(score)).sum(0))
    whole = columns // pattern.block
    losses = lost[: whole * pattern.block].view(whole, pattern.block).sum(1)
    blocks = losses.argsort(descending=True, stable=True)
    inside = torch.arange(pattern.block, device=weight.device)
    tail = torch.arange(whole * pattern.block, columns, device=weight.device)
    return torch.cat([(blocks[:, None] * pattern.block + inside).flatten(), tail])


def column_order(damped: Damped) -> Tensor:
    """order [K] int64 for a fixed mask: columns of largest input first (GPTQ's activation order)."""
    return damped.gram.diagonal().argsort(descending=True, stable=True)


def sweep(
    weight: Tensor,
    gram: Tensor,
    order: Tensor,
    *,
    choose: BlockPattern | None = None,
    keep: Tensor | None = None,
    grid: Grid | None = None,
) -> tuple[Weight, Tensor]:
    """weight [N, K] float32 -> the pruned or rounded weight, and the keep mask [N, K] bool.

    gram [K, K]: damped, positive definite. order [K] int64: the order of the columns; with `choose` it must
    keep blocks whole and a ragged one last. choose: the pattern to which the sweep prunes. keep: a fixed mask instead.
    grid: round the kept weights to codes in the same pass; without it the result is float32. Pruned weights are +0.
    ArithmeticError if gram has no Cholesky factor.
    """
    rows, columns = weight.shape
    upper = free_factor(gram, order)
    work = weight.T[order].contiguous()  # [K, N]: a column of the weight is contiguous
    kept = torch.ones_like(work) if keep is None else keep.T[order].float()
    step = PANEL // choose.block * choose.block if choose and choose.prunes else PANEL
    scheme = grid.scheme if grid else None
    made = torch.zeros(columns, rows, dtype=scheme.torch_dtype if scheme else work.dtype, device=work.device)
    scale, zero = grid.by_visit(order) if grid else (torch.ones(1, 1, device=work.device).expand_as(work),) * 2
    for start in range(0, columns, step):
        here = slice(start, min(start + step, columns))
        errors = torch.empty_like(work[here])
        panel = Panel(work[here], kept[here], made[here], errors, upper[here, here], scale[here], zero[here])
        if work.is_cuda:  # what is left of the columns has a graph of its own
            repeated((len(errors), rows), choose, scheme, work.device)(panel)
        else:
            prune_panel(panel, choose, scheme)
        work[here.stop :].addmm_(upper[here, here.stop :].T, errors, alpha=-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(columns, device=order.device)
    keep = kept[back].T.contiguous() != 0
    result = made[back].T.contiguous()
    return (QuantizedWeight(result, grid.scale, grid.scheme, grid.zero) if grid else result), keep
