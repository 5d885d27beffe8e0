"""How far one distribution of the next token is from another: KL divergence, agreement of the top, acceptance.

The base is known by its most likely tokens and the mass of all others, the *rest* (`Top`). Everything here is pure and
works on n positions at once. Logits are float32 and reduced in float32; whatever follows is float64. A log probability
is then wrong by a few units in the last place of the logits: 1e-5 nats for logits below 32, and so is each number here.

What the rest costs. Merge the tokens outside the top into one, for both distributions, and let P and Q be their masses
in base and checkpoint. By the chain rule of the KL divergence (Cover and Thomas, Elements of Information Theory, 2.5)

    KL(p ‖ q)  =  KL(merged p ‖ merged q)  +  P · KL(p within the rest ‖ q within the rest),

so the merged divergence is a lower bound, and exact where q / p is one number in the whole rest. If that quotient stays
within a factor e^±d of Q / P, the divergence within the rest is at most d² / 2 (its logarithm has a range of 2 d, and a
KL divergence of such distributions is at most range² / 8), and the bound is at most P · d² / 2 too low. Acceptance is
Σ min(p, q) with one term for the rest, an upper bound by at most min(P, Q).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_REST = 2.0**-24
"""A server reports probabilities in float32, so that what their sum leaves of 1 is known to half a unit in its last
place."""


@dataclass(frozen=True)
class Top:
    """Distributions of the next token at n positions by their k most likely tokens.

    tokens: [n, k] int64, the most likely first, all different. log_p: [n, k] float64, natural logarithms of their
    probabilities; -inf for none. log_rest: [n] float64, that of the mass of all other tokens; -inf if there is none.
    """

    tokens: Tensor
    log_p: Tensor
    log_rest: Tensor

    def to(self, device: torch.device) -> Top:
        """The same on a device."""
        return Top(self.tokens.to(device), self.log_p.to(device), self.log_rest.to(device))


def losses_of(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, vocabulary] float32, wanted [n] int64 -> the negative log likelihood of the wanted tokens in nats, and
    the log-sum-exp of the logits, [n] float64 each."""
    total = logits.logsumexp(-1).double()
    return total - _at(logits, wanted[:, None])[:, 0], total


def top_of(logits: Tensor, total: Tensor, k: int) -> Top:
    """logits [n, vocabulary] float32, which are overwritten; total: their log-sum-exp, [n] -> the k most likely tokens.

    The mass of the rest is summed, not taken as what the others leave of 1: that difference would be rounding.
    """
    found = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return Top(found.indices, found.values.double() - total[:, None], _without(logits, found.indices, total))


def divergence(base: Top, logits: Tensor, total: Tensor) -> Tensor:
    """base: Top of n positions; logits [n, vocabulary] float32 of the checkpoint there, which are overwritten; total:
    their log-sum-exp, [n] -> [n, 3] as `divergence_of`."""
    best = logits.amax(-1).double() - total
    log_q = _at(logits, base.tokens) - total[:, None]
    return divergence_of(base, log_q, _without(logits, base.tokens, total), best)


def divergence_of(base: Top, log_q: Tensor, log_q_rest: Tensor, best: Tensor) -> Tensor:
    """log_q [n, k]: the checkpoint's log probabilities of the base's tokens; log_q_rest [n]: of all others together;
    best [n]: of the checkpoint's most likely token. All float64.

    Returns [n, 3] float64: KL divergence of base to checkpoint, Σ p (log p - log q), in nats; 1 where the base's most
    likely token is the checkpoint's too (or as likely as that), else 0; Σ min(p, q), which is the probability that
    speculative decoding accepts a token that the checkpoint drafts for the base (Leviathan et al., arXiv 2211.17192,
    theorem 3.5). With a rest, the first is a lower and the last an upper bound, see above. The KL divergence is inf
    where the base expects what the checkpoint excludes.
    """
    log_p = torch.cat([base.log_p, base.log_rest[:, None]], -1)
    log_q = torch.cat([log_q, log_q_rest[:, None]], -1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    same = log_q[:, 0] >= best
    return torch.stack([terms.sum(-1), same.double(), torch.minimum(p, log_q.exp()).sum(-1)], -1)


def divergence_of_tops(base: Top, other: Top) -> Tensor:
    """The same for a checkpoint that is known by its Top too: the tokens that only one of the two names belong to the
    rest of both. Returns [n, 3] as `divergence_of`.

    Its rest is what its probabilities leave of 1. Float32 logarithms are off by 4e-6 and so is that difference: with
    masses P and Q of the rests the KL divergence is wrong by 4e-6 · P / Q, where both are small by nothing to speak of.
    """
    order = other.tokens.argsort(-1)
    tokens, log_q = other.tokens.gather(-1, order), other.log_p.gather(-1, order)
    place = torch.searchsorted(tokens, base.tokens.contiguous()).clamp_(max=tokens.shape[-1] - 1)
    known = tokens.gather(-1, place) == base.tokens
    found = log_q.gather(-1, place)
    shared_q = torch.where(known, found, -torch.inf)
    shared_p = torch.where(known, base.log_p, -torch.inf)
    lost = torch.cat([torch.where(known, -torch.inf, base.log_p), base.log_rest[:, None]], -1).logsumexp(-1)
    # What other names and base does not: all that other names, without what both do.
    only_other = other.log_p.exp().sum(-1) - shared_q.exp().sum(-1)
    rest = (only_other + other.log_rest.exp()).clamp_min(SMALLEST_REST)
    merged = Top(base.tokens, shared_p, lost)
    return divergence_of(merged, shared_q, rest.log(), other.log_p.amax(-1))


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens).double()


def _without(logits: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
    """[n] float64: the log probability of all tokens but these. Overwrites the logits."""
    return logits.scatter_(-1, tokens, -torch.inf).logsumexp(-1).double() - total
