"""Which channel scales to fold in: those of SmoothQuant's family that serve the calibration text best.

An input of 8 bits has one scale for a whole token, which its largest channel takes. Pretrained models have channels a
hundred times as large as the others ("massive activations", arXiv 2402.17762), and the others keep a few codes. The
weights have a scale for each row, so that they can take over what the inputs vary by, up to the point at which they
lose as much themselves. Strength 0.5 shares it evenly; which strength is best differs between layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.schemes import Scheme
from ..core.weights import floats, unit_of
from ..kernels.quantize.reference import quantize

SAMPLE = 512
"""Tokens that scales are tried on."""
STRENGTHS = (0.5, 0.65, 0.8)
"""Shares of the difference between channels that weights take over."""
LARGEST = 10
"""The largest exponent."""
WORTH = 0.9
"""Scales are folded in if the error of the outputs is at most this share of the error without them."""


def best_exponents(inputs: Tensor, weights: Sequence[Tensor], schemes: Sequence[Scheme]) -> Tensor:
    """inputs [tokens, K], weights [N, K] float32 each with its scheme -> exponents of two [K] int64, all zero if none
    lowers the error enough. Scale: rms(input)^strength / rms(column)^(1 - strength), over the mean of all channels."""
    inputs = inputs * unit_of(inputs)
    unit = unit_of(torch.stack([weight.abs().amax() for weight in weights]))
    weights = [weight * unit for weight in weights]
    sample = inputs[:: max(1, len(inputs) // SAMPLE)][:SAMPLE]
    rms = torch.stack([inputs.square().mean(0).sqrt(), _columns(weights)])
    large = (rms / rms.amax(1, keepdim=True)).log2()  # of the largest channel: no rounding depends on the sizes
    used = large.isfinite().all(0)
    best = torch.zeros(inputs.shape[1], dtype=torch.int64, device=inputs.device)
    least = output_error(sample, weights, schemes, best) * WORTH
    for strength in STRENGTHS:
        raw = torch.where(used, strength * large[0] - (1 - strength) * large[1], 0.0)
        mean = raw.sum() / used.sum().clamp(min=1)
        tried = torch.where(used, raw - mean, 0.0).round().clamp(-LARGEST, LARGEST).long()
        error = output_error(sample, weights, schemes, tried)
        if error < least:
            best, least = tried, error
    return best


def output_error(inputs: Tensor, weights: Sequence[Tensor], schemes: Sequence[Scheme], exponents: Tensor) -> float:
    """The mean over tokens of ||Q(x / s) Q(s W)ᵀ - x Wᵀ||² / ||x Wᵀ||², with s = 2^exponents [K] and both rounded to
    nearest. inputs [tokens, K], weights [N, K] float32, each with its scheme."""
    scale = torch.exp2(exponents.float())
    change = energy = torch.zeros(len(inputs), device=inputs.device)
    for weight, scheme in zip(weights, schemes, strict=True):
        codes, token_scale = quantize(inputs / scale, scheme.torch_dtype)
        exact = inputs @ weight.T
        served = (codes.float() * token_scale) @ floats(scheme.store(weight * scale)).T
        change = change + (served - exact).square().sum(1)
        energy = energy + exact.square().sum(1)
    return float((change / energy.clamp(min=torch.finfo(energy.dtype).tiny)).mean())


def _columns(weights: Sequence[Tensor]) -> Tensor:
    """The root mean square of each column of all weights together, [K]."""
    squares = sum((weight.square().sum(0) for weight in weights), torch.zeros_like(weights[0][0]))
    return (squares / sum(len(weight) for weight in weights)).sqrt()
