"""The search for a channel permutation: which columns of a linear share a block of a 2:L pattern.

The search minimizes the saliency that Wanda's mask removes: the sum, over rows and blocks, of the two lowest
s_ij = (w_ij ||X_j||)². It first distributes channels over the blocks by strength, then exchanges them between blocks,
as RIA does (Zhang et al., Plug-and-Play, ICLR 2024). An exchange removes one channel from every block and assigns the
removed channels to the blocks at minimal loss: with a <= b the two lowest scores of the remaining channels, a row loses
a + min(b, s_c) after channel c joins the block, and the sum of these minima over the rows is
(Σ b + Σ s_c - Σ |b - s_c|) / 2, an L1 distance. Finding the assignment is a linear assignment problem.

Scores are integers and their sums exact, so that every device and every run finds the same order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.patterns import Pattern
from ..errors import InputError
from .layer import query_columns

SWEEPS = 3
"""Passes over all positions of the blocks."""
BATCH = 1024
"""Blocks that exchange channels at once: larger batches find slightly more, at quadratic time and memory."""
CLIP = 2.0**20
"""Scores are clipped to this multiple of their median: larger ones are not pruned, and would leave no digits for those
that are."""
SUM_BITS = 50
"""Scores are scaled so that their sums over all rows stay below 2**SUM_BITS: exact in float64."""
BID = 0.05
"""Minimal bid increment of the auction, as a share of the mean gain of a block that could choose freely."""
PATIENCE = 4
"""The minimal bid increment doubles after this many rounds per block."""


def find_order(weight: Tensor, norms: Tensor, pattern: Pattern, heads: int = 1, key_value_heads: int = 1) -> Tensor:
    """The order [key_value_heads, K / heads] int64 of a weight's columns that minimizes the loss of the pattern's mask.

    weight [N, K], norms [K] (||X_j||, in any unit): finite floats. The query heads of a key-value head share an order;
    the inner channels of an MLP are one head. The loss is never above that of the natural order, which is returned for
    a pattern that gains nothing, such as 2:inf. Blocks start at the first column of the weight, so blocks of 6 or 10
    columns cross heads. InputError if `heads` does not divide K, or `key_value_heads` does not divide `heads`.
    """
    columns, length = weight.shape[1], pattern.permuted_block
    if columns % heads or heads % key_value_heads:
        raise InputError(
            f"{columns} columns, {heads} query heads, {key_value_heads} key-value heads do not divide each other",
            hint="check num_attention_heads and num_key_value_heads in config.json",
        )
    size = columns // heads
    natural = torch.arange(size, device=weight.device).repeat(key_value_heads, 1)
    if size < 2 * max(length, 1) or not length:
        return natural
    count = size // length  # blocks that lie within a head at any offset
    scores = _integer_scores(weight, norms, heads // key_value_heads)
    distributed = _distribute(scores[:-1], length, heads, key_value_heads)
    order = min(natural, distributed, key=lambda order: _lost(scores, query_columns(order, heads), length))
    # A comb has one position in every block: positions L apart, the first at least L after the last of the head before.
    starts = range(size - length * (count - 1))
    combs = [torch.arange(start, start + length * count, length, device=weight.device) for start in starts]
    parts = -(-count // BATCH)
    for sweep in range(SWEEPS):
        before = order
        for comb in combs:
            # Batches of adjacent blocks and of distant ones alternate, so that a channel can reach every block.
            for batch in comb.tensor_split(parts) if sweep % 2 else [comb[part::parts] for part in range(parts)]:
                costs = _joining_costs(scores, query_columns(order, heads), batch, length, heads, key_value_heads)
                chosen = np.stack([_assign(cost) for cost in costs.long().cpu().numpy()])
                order = order.index_copy(1, batch, order[:, batch].gather(1, torch.from_numpy(chosen).to(order.device)))
        if torch.equal(order, before):
            break
    return order


def _integer_scores(weight: Tensor, norms: Tensor, readers: int) -> Tensor:
    """(w_ij ||X_j||)² as integers, float64 [K + 1, N]: a row for each column of the weight, and a last row of zeros.

    The unit keeps sums over all rows and the `readers` of a head exact. A zero weight has zero scores.
    """
    rows, columns = weight.shape
    score = (weight.double() * norms.double()).square_().T
    whole = torch.zeros(columns + 1, rows, dtype=torch.float64, device=weight.device)
    alive = score[score > 0]
    if len(alive):
        most = min(float(alive.max()), CLIP * float(alive.median()))
        unit = most / 2 ** (SUM_BITS - (rows * readers).bit_length())
        whole[:-1] = score.clamp(max=most).div_(torch.full_like(score[:1], unit)).round_()
    return whole


def _distribute(scores: Tensor, length: int, heads: int, key_value_heads: int) -> Tensor:
    """RIA's heuristic: scores [K, N] -> order [key_value_heads, head_dim] with similar strength in every block.

    The strength of a channel is the number of its weights that the rows would keep without blocks, then their sum.
    From weakest to strongest, channels go to the blocks in alternating direction. The remaining channels, the
    strongest, come last, where an incomplete block prunes nothing.
    """
    columns = len(scores)
    kept = scores > scores.kthvalue(2 * columns // length, dim=0).values
    count, total = kept.double().sum(1), (scores * kept).sum(1)
    count, total = (values.view(key_value_heads, -1, columns // heads).sum(1) for values in (count, total))
    rank = total.argsort(dim=1, stable=True)
    rank = rank.gather(1, count.gather(1, rank).argsort(dim=1, stable=True))
    count_blocks = rank.shape[1] // length
    tiers = rank[:, : count_blocks * length].view(key_value_heads, length, count_blocks).clone()
    tiers[:, 1::2] = tiers[:, 1::2].flip(2)
    return torch.cat([tiers.transpose(1, 2).flatten(1), rank[:, count_blocks * length :]], dim=1)


def _two_lowest(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """scores [K + 1, N], columns [..., J] -> lowest and second lowest score of the J columns, [..., N] each."""
    lowest = second = torch.full((), float("inf"), dtype=scores.dtype, device=scores.device)
    for column in columns.unbind(-1):
        score = scores[column]
        second = torch.minimum(second, torch.maximum(lowest, score))
        lowest = torch.minimum(lowest, score)
    return lowest, second


def _padded(placed: Tensor, length: int) -> Tensor:
    """placed [K]: the column at each position -> the same, with the zero column where the last block is incomplete."""
    return torch.nn.functional.pad(placed, (0, -len(placed) % length), value=len(placed))


def _lost(scores: Tensor, placed: Tensor, length: int) -> float:
    """The saliency that the mask removes with column placed[i] at position i."""
    lowest, second = _two_lowest(scores, _padded(placed, length).view(-1, length))
    return float((lowest + second).sum())


def _joining_costs(
    scores: Tensor, placed: Tensor, comb: Tensor, length: int, heads: int, key_value_heads: int
) -> Tensor:
    """[key_value_heads, P, P]: the loss, up to a constant, if the channel at position comb[j] moves to comb[i].

    comb [P]: positions within a head. All heads are computed together, since their positions lie in different blocks.
    """
    starts = len(placed) // heads * torch.arange(heads, device=comb.device)[:, None]
    at = starts + comb
    others = torch.arange(1, length, device=comb.device)
    first = at[..., None] // length * length
    beside = first + (at[..., None] - first + others) % length
    placed = _padded(placed, length)
    _, second = _two_lowest(scores, placed[beside])
    joining = scores[placed[at]]

    def by_reader(values: Tensor) -> Tensor:
        return values.view(key_value_heads, -1, len(comb), values.shape[-1]).transpose(1, 2).flatten(2).contiguous()

    second, joining = by_reader(second), by_reader(joining)
    apart = torch.cdist(second, joining, p=1)
    return (second.sum(2)[:, :, None] + joining.sum(2)[:, None, :] - apart) / 2


def _assign(cost: NDArray[np.int64]) -> NDArray[np.int64]:
    """cost [P, P] -> a permutation [P], the column of every row, with nearly minimal cost.

    Bertsekas' auction algorithm: a row without a column bids for its best one the difference to its second best, plus a
    minimal increment. The increment bounds the distance of a row from its optimum; it doubles regularly, which limits
    the rounds that rows with equal preferences need. The result is the identity unless the auction improves on it.
    """
    count = len(cost)
    own = np.arange(count)
    gain = cost.diagonal() - cost  # relative to the present position of the column
    least = int((gain.max(1) // count).sum() * BID) + 1
    prices, chosen, owner = np.zeros_like(gain[0]), np.full(count, -1), np.full(count, -1)
    rounds = 0
    while len(bidders := np.flatnonzero(chosen < 0)):
        rounds += 1
        least += least * (rounds % (PATIENCE * count) == 0)
        value = gain[bidders] - prices
        at, wanted = own[: len(bidders)], value.argmax(1)
        best = value[at, wanted]
        value[at, wanted] = -(2**62)
        bid = prices[wanted] + best - value.max(1) + least
        np.maximum.at(prices, wanted, bid)
        highest = np.flatnonzero(bid == prices[wanted])
        sold, first = np.unique(wanted[highest], return_index=True)  # of equal bids, that of the first row
        losers = owner[sold]
        chosen[losers[losers >= 0]] = -1
        owner[sold] = bidders[highest[first]]
        chosen[owner[sold]] = sold
    return chosen if int(gain[own, chosen].sum()) > 0 else own
