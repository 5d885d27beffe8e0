"""Descent over ternary codes: block by block the best change of one or two codes, all others fixed.

A sweep rounds each weight once and never returns to it. With three values to choose from that loses much: a block may
do better with other zeros, or with a code that pays back what a neighbour lost. For a row of codes q with scale s,
target w* and damped Gram matrix H the loss is

    f(q) = (s q - w*) H (s q - w*)ᵀ + λ ||s q - m||²

and changing codes i and j by a and b changes it by Δ(i, a) + Δ(j, b) + 2 a b s² H_ij with
Δ(i, a) = 2 a s g_i + a² s² H_ii + the change of the second term, g = (s q - w*) H. Every pair of a block is tried,
and the best that keeps the pattern is taken if it lowers f, so f never rises; a zero that moves within its block is a
pair. Between passes each row's scale is fitted to the first term alone: s = w* H qᵀ / q H qᵀ (latent weights are wider
spread than their codes, and would pull it off: see LOG.md).

m are the latent weights, the floats that the codes were trained as. They say nothing of the layer's function, but a
weight that training left near the edge between two codes matters less than one far from it (measured, see
BENCHMARKS.md).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

from ..core.patterns import BlockPattern
from ..kernels.planes import blocks

ROUNDS = 3
"""Passes over all blocks, the scales fitted before each and after the last."""
PRIOR = 0.2
"""λ as a share of the mean diagonal of H."""
PANEL = 32
"""Columns whose gradients are kept up to date together, at most."""
CODES = (-1.0, 0.0, 1.0)


def descend(
    codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor, pattern: BlockPattern, latent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """codes [N, K] of -1, 0, 1 that follow the pattern, scale [N, 1] -> better ones, float32 both.

    target [N, K] float32: w*. gram [K, K] float32: H, damped. latent [N, K] float32, None if they are not known.
    """
    prior = 0.0 if latent is None else PRIOR * float(gram.diagonal().mean())
    codes, pairs = codes.clone(), len(_pairs(pattern.block, codes.device)[0])
    scale = fit_scale(codes, scale, target, gram)
    for _ in range(ROUNDS):
        for rows in blocks(len(codes), pairs, codes.device.type):
            own = None if latent is None else latent[rows]
            sweep_blocks(codes[rows], scale[rows], target[rows], gram, pattern, own, prior)
        scale = fit_scale(codes, scale, target, gram)
    return codes, scale


def fit_scale(codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor) -> Tensor:
    """The scale [N, 1] with which codes [N, K] come nearest to the target; `scale` where no positive one does."""
    bent = codes @ gram
    energy, reached = (bent * codes).sum(1, keepdim=True), (bent * target).sum(1, keepdim=True)
    fits = (energy > 0) & (reached > 0)
    return torch.where(fits, reached / torch.where(fits, energy, torch.ones_like(energy)), scale)


@cache
def _pairs(columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All changes of one or two codes of a block, as indices of moves; the move after the last changes nothing.

    Move 3 l + v makes column l the code CODES[v].
    """
    nothing = 3 * columns
    first, second = list(range(nothing)), [nothing] * nothing
    for one, other in combinations(range(columns), 2):
        for move, reply in product(range(3), repeat=2):
            first.append(3 * one + move)
            second.append(3 * other + reply)
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


def sweep_blocks(
    codes: Tensor,
    scale: Tensor,
    target: Tensor,
    gram: Tensor,
    pattern: BlockPattern,
    latent: Tensor | None,
    prior: float,
) -> None:
    """Once over all blocks of some rows: `codes` [N, K] is changed in place. prior: λ, the rest as for `descend`."""
    columns, step = codes.shape[1], max(1, PANEL // pattern.block) * pattern.block
    off = codes * scale - target
    for start in range(0, columns, step):
        panel = slice(start, min(start + step, columns))
        gradient = off @ gram[:, panel]
        for first in range(panel.start, panel.stop, pattern.block):
            block = slice(first, min(first + pattern.block, columns))
            inside = slice(block.start - start, block.stop - start)
            own = None if latent is None else latent[:, block]
            change = best_change(codes[:, block], scale, gradient[:, inside], gram[block, block], pattern, own, prior)
            codes[:, block] += change
            change = change * scale
            off[:, block] += change
            gradient += change @ gram[block, panel]


def best_change(
    codes: Tensor,
    scale: Tensor,
    gradient: Tensor,
    gram: Tensor,
    pattern: BlockPattern,
    latent: Tensor | None,
    prior: float,
) -> Tensor:
    """codes [N, L] of one block -> what to add to them, zero where nothing helps.

    gradient [N, L]: g of these columns. gram [L, L]: theirs. A last block may be narrower than the pattern's.
    """
    rows, columns = codes.shape
    values = torch.tensor(CODES, device=codes.device)
    change = values - codes[:, :, None]  # [N, L, 3]
    step = change * scale[:, :, None]
    cost = 2 * gradient[:, :, None] * step + gram.diagonal()[None, :, None] * step.square()
    if latent is not None and prior:
        wanted = latent[:, :, None]
        before = (codes * scale)[:, :, None]
        cost += prior * ((before + step - wanted).square() - (before - wanted).square())
    taken = codes.count_nonzero(1)[:, None]
    more = (values != 0).to(torch.int8) - (codes != 0).to(torch.int8)[:, :, None]
    # One more move that changes nothing, so that single changes are pairs as well.
    cost, step, more = (torch.nn.functional.pad(part.flatten(1), (0, 1)) for part in (cost, step, more))
    first, second = _pairs(columns, codes.device)
    coupling = torch.nn.functional.pad(gram, (0, 1, 0, 1))[first // 3, second // 3]
    total = step[:, first] * step[:, second] * (2 * coupling) + cost[:, first] + cost[:, second]
    total.masked_fill_(taken + more[:, first] + more[:, second] > pattern.most_nonzeros, torch.inf)
    best, pair = total.min(1)
    found = torch.zeros(rows, 3 * columns + 1, device=codes.device)
    helps = (best < 0).float()[:, None]
    found.scatter_(1, first[pair][:, None], helps).scatter_add_(1, second[pair][:, None], helps)
    return (found[:, :-1].view(rows, columns, 3) * change).sum(2)
