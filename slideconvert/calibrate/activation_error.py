"""How much quantizing the inputs of a linear changes its outputs.

One scale serves a whole token. An input channel much larger than the others takes the scale, and the others are rounded
to a few codes or to none. No weight can mend that, so that calibration does not show it in other errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.schemes import Scheme
from ..kernels.quantize.reference import quantize

SAMPLE = 512
"""Tokens of which the error is measured: it differs little between thousands of tokens."""
TOO_MUCH = 0.1
"""Relative errors above it get a note. In models that 8 bits serve well, linears have errors of 0.002 to 0.04."""
NOTE = (
    f"quantizing its inputs to 8 bits changes its outputs by more than {TOO_MUCH:.0%} on the calibration text: some "
    "input channels are far larger than the others. Smooth them (smooth: true) if they were not, or keep it in "
    "floating point (a rule with keep: true)"
)


def activation_error(inputs: Tensor, weight: Tensor, scheme: Scheme) -> float | None:
    """inputs [tokens, K], weight [N, K] -> ||Q(X)Wᵀ - XWᵀ|| / ||XWᵀ|| with three digits; None if the scheme leaves
    inputs as floats, 0 for outputs that are zero."""
    if not scheme.quantized or scheme.activation_bits != 8:
        return None
    floats = inputs.float()
    codes, scale = quantize(floats, scheme.torch_dtype)
    outputs = floats @ weight.T
    change = (codes.float() * scale - floats) @ weight.T
    whole = float(torch.linalg.vector_norm(outputs))
    return float(f"{float(torch.linalg.vector_norm(change)) / whole:.3g}") if whole else 0.0
