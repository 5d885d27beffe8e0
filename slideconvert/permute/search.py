"""The search for a channel permutation: which columns of a linear share a block of a 2:L pattern.

The search lowers the saliency that the mask of Wanda loses: the two lowest s_ij = (w_ij ||X_j||)² of every row and
block, summed. Channels are dealt to the blocks by strength, then exchanged between blocks, as in RIA (Zhang et al.,
Plug-and-Play, ICLR 2024). An exchange takes one channel out of every block and puts each where it hurts least: with
a <= b the two lowest of those that stay, a row loses a + min(b, s_c) once channel c has joined, and the sum of minima
over the rows is (Σ b + Σ s_c - Σ |b - s_c|) / 2, an L1 distance. The rest is an assignment problem.

Scores are whole numbers and their sums exact, so that every device and every run finds the same order.
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
"""Times that each place of the blocks is visited."""
BATCH = 1024
"""Blocks that exchange channels at once: more find a little more, and take time and memory by the square."""
CLIP = 2.0**20
"""Scores count up to this many medians: what is larger is not pruned, and would leave no digits for what is."""
SUM_BITS = 50
"""Scores are scaled such that their sums over all rows stay below 2 to this: exact in float64."""
BID = 0.05
"""Smallest bid of the auction, as a share of what a block would gain on average if it could choose alone."""
PATIENCE = 4
"""Rounds for each block after which the smallest bid doubles."""


def find_order(weight: Tensor, norms: Tensor, pattern: Pattern, heads: int = 1, key_value_heads: int = 1) -> Tensor:
    """The order [key_value_heads, K / heads] int64 of a weight's columns with which the mask of `pattern` loses least.

    weight [N, K], norms [K] (||X_j||, in any unit): finite floats. All query heads of a key-value head have one order;
    the inner channels of an MLP are a single head. The saliency lost is never more than in the present order, which is
    returned for a pattern that gains nothing, such as 2:inf. Blocks count from the first column of the weight, so those
    of 6 or 10 reach across heads.
    """
    columns, length = weight.shape[1], pattern.permuted_block
    if columns % heads or heads % key_value_heads:
        raise InputError(
            f"{columns} columns, {heads} query heads, {key_value_heads} key-value heads: no whole number of each",
            hint="check num_attention_heads and num_key_value_heads in config.json",
        )
    size = columns // heads
    natural = torch.arange(size, device=weight.device).repeat(key_value_heads, 1)
    if size < 2 * max(length, 1) or not length:
        return natural
    count = size // length  # blocks that surely lie within a head
    scores = _whole_scores(weight, norms, heads // key_value_heads)
    dealt = _deal(scores[:-1], length, heads, key_value_heads)
    order = min(natural, dealt, key=lambda order: _lost(scores, query_columns(order, heads), length))
    # A lane is one place in every block: places L apart, and the first at least L from the last of the head before.
    starts = range(size - length * (count - 1))
    lanes = [torch.arange(start, start + length * count, length, device=weight.device) for start in starts]
    parts = -(-count // BATCH)
    for sweep in range(SWEEPS):
        before = order
        for lane in lanes:
            # Batches of near blocks and of far ones by turns, so that a channel can get anywhere.
            for batch in lane.tensor_split(parts) if sweep % 2 else [lane[part::parts] for part in range(parts)]:
                costs = _joining_costs(scores, query_columns(order, heads), batch, length, heads, key_value_heads)
                chosen = np.stack([_assign(cost) for cost in costs.long().cpu().numpy()])
                order = order.index_copy(1, batch, order[:, batch].gather(1, torch.from_numpy(chosen).to(order.device)))
        if torch.equal(order, before):
            break
    return order


def _whole_scores(weight: Tensor, norms: Tensor, readers: int) -> Tensor:
    """(w_ij ||X_j||)² in whole numbers, float64 [K + 1, N]: a row for each column, and a last one of zeros.

    The unit is such that sums over all rows and the `readers` of a head stay exact. All zeros if the weight is.
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


def _deal(scores: Tensor, length: int, heads: int, key_value_heads: int) -> Tensor:
    """RIA's heuristic: scores [K, N] -> order [key_value_heads, head_dim], every block with its share of strength.

    The strength of a channel is how many of its weights the rows would keep if there were no blocks, then their sum.
    From weakest to strongest, channels are dealt to the blocks, back and forth. What is left over, the strongest,
    comes last, where a ragged block prunes nothing.
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
    """scores [K + 1, N], columns [..., J] -> lowest and second lowest over the J columns, [..., N] each."""
    lowest = second = torch.full((), float("inf"), dtype=scores.dtype, device=scores.device)
    for column in columns.unbind(-1):
        score = scores[column]
        second = torch.minimum(second, torch.maximum(lowest, score))
        lowest = torch.minimum(lowest, score)
    return lowest, second


def _padded(placed: Tensor, length: int) -> Tensor:
    """placed [K]: which column stands where -> the same with the zero column behind a ragged end."""
    return torch.nn.functional.pad(placed, (0, -len(placed) % length), value=len(placed))


def _lost(scores: Tensor, placed: Tensor, length: int) -> float:
    """The saliency that a mask loses with the columns placed so."""
    lowest, second = _two_lowest(scores, _padded(placed, length).view(-1, length))
    return float((lowest + second).sum())


def _joining_costs(
    scores: Tensor, placed: Tensor, lane: Tensor, length: int, heads: int, key_value_heads: int
) -> Tensor:
    """[key_value_heads, P, P]: what is lost, up to a constant, where the channel at place j of the lane moves to i.

    lane [P]: places within a head. All heads are looked at together: the places of a lane lie in different blocks.
    """
    starts = len(placed) // heads * torch.arange(heads, device=lane.device)[:, None]
    at = starts + lane
    others = torch.arange(1, length, device=lane.device)
    first = at[..., None] // length * length
    beside = first + (at[..., None] - first + others) % length
    placed = _padded(placed, length)
    _, second = _two_lowest(scores, placed[beside])
    joining = scores[placed[at]]

    def by_reader(values: Tensor) -> Tensor:
        return values.view(key_value_heads, -1, len(lane), values.shape[-1]).transpose(1, 2).flatten(2).contiguous()

    second, joining = by_reader(second), by_reader(joining)
    apart = torch.cdist(second, joining, p=1)
    return (second.sum(2)[:, :, None] + joining.sum(2)[:, None, :] - apart) / 2


def _assign(cost: NDArray[np.int64]) -> NDArray[np.int64]:
    """cost [P, P] -> for every row its column [P], each once, of nearly the lowest sum.

    Bertsekas' auction: rows without a column bid for the one they like best, by as much as they like it more than
    the next best and a little more. That little is how far a row may end from its best; it doubles now and
    then, or rows that want the same would go on for long. The rows keep their own columns where that is no worse.
    """
    count = len(cost)
    own = np.arange(count)
    gain = cost.diagonal() - cost  # over what the column costs where it is: prices start fair
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
        sold, first = np.unique(wanted[highest], return_index=True)  # of equal bids the first row's
        losers = owner[sold]
        chosen[losers[losers >= 0]] = -1
        owner[sold] = bidders[highest[first]]
        chosen[owner[sold]] = sold
    return chosen if int(gain[own, chosen].sum()) > 0 else own
