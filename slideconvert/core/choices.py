"""Words to choose from that --help shows, so they stand here, where importing them loads no torch."""

from __future__ import annotations

PRUNING = ("magnitude", "wanda", "hessian", "obs", "alps", "gqsa", "saliency")
ROUNDING = ("rtn", "gptq")
"""The methods that prune, and those that only round; prune.METHODS says what they are."""

FULL = "full"
CODES = ("ternary", FULL)
"""Which codes ternary weights may become: -1, 0 and 1 only, or all of the scheme."""

ACTIVATIONS = ("quantized", "float")
"""How the input of a quantized linear is treated: per token in 8 bits, as served, or not rounded at all."""

PLACES = ("device", "cpu", "disk")
"""Where hidden states are kept between layers: where the model computes, in CPU memory or in files."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""What models run in while they are calibrated and trained."""
