"""Coordinate descent over ternary codes: block by block, apply the best change of one or two codes.

A sweep rounds each weight once and never revises it. With only three values to choose from, this loses much: a block
may have a smaller loss with other zeros, or with a code that compensates for the error of its neighbor. For a row of
codes q with scale s, target w* and damped Gram matrix H, the loss is

    f(q) = (s q - w*) H (s q - w*)ᵀ + λ ||s q - m||²

and changing codes i and j by a and b changes it by Δ(i, a) + Δ(j, b) + 2 a b s² H_ij with
Δ(i, a) = 2 a s g_i + a² s² H_ii + the change of the second term, where g = (s q - w*) H. Every pair of changes in a
block is evaluated, and the best one that keeps the pattern is applied if it lowers f, so f never increases. To move a
zero within its block is a pair of changes. Between passes, the scale of each row is fitted to the first term alone:
s = w* H qᵀ / q H qᵀ (latent weights spread more widely than their codes and would bias the scale: see LOG.md).

m are the latent weights, the floats that were trained and that the codes are rounded from. They do not enter the
function of the layer, but a weight that training left near the threshold between two codes matters less than one far
from it (measured, see BENCHMARKS.md).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

from ..core.patterns import BlockPattern
from ..kernels.planes import blocks

ROUNDS = 3
"""Passes over all blocks. The scales are fitted before the first pass and after each pass."""
PRIOR = 0.2
"""λ as a share of the mean diagonal of H."""
PANEL = 32
"""Maximum number of columns whose gradients are updated after each block; the others are updated once per panel."""
CODES = (-1.0, 0.0, 1.0)


def descend(
    codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor, pattern: BlockPattern, latent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """codes [N, K] float32 of -1, 0, 1 that follow the pattern, scale [N, 1] float32 -> codes and scale of less loss.

    target [N, K] float32: w*. gram [K, K] float32: H, damped. latent [N, K] float32: m; None if they are not known.
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
    """The scale [N, 1] that minimizes the loss of codes [N, K]; `scale` [N, 1] for rows whose best is not positive."""
    bent = codes @ gram
    energy, reached = (bent * codes).sum(1, keepdim=True), (bent * target).sum(1, keepdim=True)
    fits = (energy > 0) & (reached > 0)
    return torch.where(fits, reached / torch.where(fits, energy, torch.ones_like(energy)), scale)


@cache
def _pairs(columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All changes of one or two codes of a block, as two tensors [pairs] of indices of changes.

    Change 3 l + v sets column l to CODES[v]; the index after the last stands for no second change.
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
    """One pass over all blocks; changes `codes` [N, K] in place. prior: λ. Other arguments: as for `descend`."""
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
    """codes [N, L] float32 of one block -> the change [N, L] to add to them; zero where no change lowers the loss.

    gradient [N, L] float32: g of these columns. gram [L, L] float32: H of these columns. The last block may have fewer
    columns than the pattern's L.
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
    # An entry of zeros for "no second change", so that a single change is a pair as well.
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
