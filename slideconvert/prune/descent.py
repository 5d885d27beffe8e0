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
from it (measured, see benches/measured).

Within a panel of blocks every step is an element-wise operation or a copy of whole rows of tensors whose last dimension
are the rows of the weight, as in kernels/planes.py: on a CPU that is several times as fast as to gather within rows. A
GPU runs the hundred kernels of a panel faster than Python starts them, so they become a CUDA graph (core/captured.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import combinations, product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.captured import Captured
from ..core.patterns import BlockPattern
from ..kernels.planes import blocks

ROUNDS = 3
"""Passes over all blocks. The scales are fitted before the first pass and after each pass."""
PRIOR = 0.2
"""λ as a share of the mean diagonal of H."""
PANEL = 32
"""Maximum number of columns whose gradients are updated after each block; the others are updated once per panel."""
CODES = (-1.0, 0.0, 1.0)
FORBIDDEN = 1e38
"""Added to the change of the loss for each non-zero beyond those that the pattern allows."""


def descend(
    codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor, pattern: BlockPattern, latent: Tensor | None
) -> tuple[Tensor, Tensor]:
    """codes [N, K] float32 of -1, 0, 1 that follow the pattern, scale [N, 1] float32 -> codes and scale of less loss.

    target [N, K] float32: w*. gram [K, K] float32: H, damped. latent [N, K] float32: m; None if they are not known.
    """
    prior = (PRIOR * gram.diagonal().mean().double()).float()
    codes, pairs = codes.clone(), len(_pairs(slice(0, pattern.block), 0)) - 1
    scale = fit_scale(codes, scale, target, gram)
    for _ in range(ROUNDS):
        for rows in blocks(len(codes), pairs, codes.device.type):
            own = None if latent is None else latent[rows]
            sweep_blocks(codes[rows], scale[rows], target[rows], gram, pattern, prior, own)
        scale = fit_scale(codes, scale, target, gram)
    return codes, scale


def fit_scale(codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor) -> Tensor:
    """The scale [N, 1] that minimizes the loss of codes [N, K]; `scale` [N, 1] for rows whose best is not positive."""
    bent = codes @ gram
    energy, reached = (bent * codes).sum(1, keepdim=True), (bent * target).sum(1, keepdim=True)
    fits = (energy > 0) & (reached > 0)
    return torch.where(fits, reached / torch.where(fits, energy, torch.ones_like(energy)), scale)


def sweep_blocks(
    codes: Tensor,
    scale: Tensor,
    target: Tensor,
    gram: Tensor,
    pattern: BlockPattern,
    prior: Tensor,
    latent: Tensor | None,
) -> None:
    """One pass over all blocks; changes `codes` [N, K] in place. prior: λ, a scalar on the device. Other arguments: as
    for `descend`."""
    columns, step = codes.shape[1], max(1, PANEL // pattern.block) * pattern.block
    off = codes * scale - target
    for start in range(0, columns, step):
        panel = slice(start, min(start + step, columns))
        own = () if latent is None else (latent[:, panel],)
        given = (codes[:, panel], scale, off @ gram[:, panel], gram[panel, panel], prior, *own)
        if codes.is_cuda:
            change = _repeated(pattern, codes.device, *(part.shape for part in given))(*given)
        else:
            change = best_changes(pattern, *given)
        codes[:, panel] += change
        off[:, panel] += change * scale


@lru_cache(maxsize=8)
def _repeated(pattern: BlockPattern, device: torch.device, *shapes: torch.Size) -> Callable[..., Tensor]:
    """`best_changes` of arguments of these shapes on a GPU: runs as a CUDA graph from the third call on. The result is
    valid until the next call. The layers of a model have only a few shapes."""
    change = torch.empty(shapes[0], device=device)

    def run(codes: Tensor, scale: Tensor, gradient: Tensor, gram: Tensor, *others: Tensor) -> None:
        # The same layout as in the graph, so that the first calls multiply matrices with the same kernels.
        change.copy_(best_changes(pattern, codes, scale, gradient, gram.contiguous(), *others))

    captured = Captured(run)

    def changes(*given: Tensor) -> Tensor:
        captured(*given)
        return change

    return changes


def best_changes(
    pattern: BlockPattern,
    codes: Tensor,
    scale: Tensor,
    gradient: Tensor,
    gram: Tensor,
    prior: Tensor,
    latent: Tensor | None = None,
) -> Tensor:
    """codes [N, C] float32 of one or more blocks -> the change [N, C] to add to them: in each block, after those before
    it, the best of one or two codes; zero where no change lowers the loss.

    scale [N, 1] float32. gradient [N, C] float32: g of these columns. gram [C, C] float32: H of these columns. prior: λ
    as a scalar tensor. latent [N, C] float32: m of these columns. The last block may have fewer columns than L.
    """
    (rows, columns), layout = codes.shape, _layout(codes.shape[1], pattern.block, codes.device)
    scale, now, gradient = scale.T, codes.T.contiguous()[:, None], gradient.clone()
    change = layout.values - now  # [C, 3, N]
    step = change * scale
    square = gram.diagonal()[:, None, None] * step.square()
    away = None
    if latent is not None:
        before, wanted = now * scale, latent.T.contiguous()[:, None]
        away = prior * ((before + step - wanted).square() - (before - wanted).square())
    taken = (now != 0).to(torch.int8)
    more = layout.nonzeros - taken
    # Rows of changes, and a row of zeros for no change.
    change, step, more = (pad(part.flatten(0, 1), (0, 0, 0, 1)) for part in (change, step, more))
    cost = torch.zeros_like(step)
    coupling = 2 * pad(gram, (0, 1, 0, 1))
    found = torch.zeros(columns + 1, rows, device=codes.device)
    for block, pairs, places in layout.blocks:
        inside = slice(3 * block.start, 3 * block.stop)
        own = cost[inside].view(-1, 3, rows)
        slope = 2 * gradient[:, block].T.contiguous()
        torch.mul(slope[:, None], step[inside].view(-1, 3, rows), out=own)
        own += square[block]
        if away is not None:
            own += away[block]
        one, other = _of_pairs(step, pairs)
        total = one.mul_(other).mul_(coupling[places[0], places[1]][:, None])
        for part in _of_pairs(cost, pairs):
            total += part
        one, other = _of_pairs(more, pairs)
        room = pattern.most_nonzeros - taken[block].sum((0, 1), dtype=torch.int8)
        total.add_(one.add_(other).sub_(room).clamp_(min=0), alpha=FORBIDDEN)
        best = total.min(0).indices
        found.scatter_(0, places.index_select(1, best), change.gather(0, pairs.index_select(1, best)))
        if block.stop < columns:
            gradient += (found[block] * scale).T.contiguous() @ gram[block]
    return found[:-1].T


def _of_pairs(table: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """table [changes, N], pairs [2, P] -> the rows of the first and of the second changes, [P, N] each."""
    first, second = table.index_select(0, pairs.flatten()).chunk(2)
    return first, second


class _Layout(NamedTuple):
    """What all panels of one shape share. values [3, 1] float32: CODES. nonzeros [3, 1] int8: which are not zero.

    blocks: of each block its columns, all changes of at most two of its codes [2, pairs] int64, and the columns that
    these change, likewise. Change 3 c + v sets column c to CODES[v]; the number after the last stands for no change.
    """

    values: Tensor
    nonzeros: Tensor
    blocks: tuple[tuple[slice, Tensor, Tensor], ...]


@cache
def _layout(columns: int, length: int, device: torch.device) -> _Layout:
    """The layout of a panel of so many columns in blocks of this length."""
    values, parts = torch.tensor(CODES, device=device)[:, None], []
    for start in range(0, columns, length):
        block = slice(start, min(start + length, columns))
        pairs = torch.tensor(_pairs(block, 3 * columns)).T.contiguous()
        parts.append((block, pairs.to(device), (pairs // 3).to(device)))
    return _Layout(values, (values != 0).to(torch.int8), tuple(parts))


def _pairs(block: slice, nothing: int) -> list[tuple[int, int]]:
    """All changes of no, one and two codes of a block. The best one that comes first is taken."""
    columns = range(block.start, block.stop)
    singles = [(3 * column + value, nothing) for column in columns for value in range(3)]
    return [
        (nothing, nothing),
        *singles,
        *(
            (3 * one + value, 3 * other + reply)
            for one, other in combinations(columns, 2)
            for value, reply in product(range(3), repeat=2)
        ),
    ]
