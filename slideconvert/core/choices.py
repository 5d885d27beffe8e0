"""Words to choose from that --help shows; they stand here, where importing them loads no torch.

The first ones name the entries of registries whose modules need torch: tests/house/test_options.py compares them.
"""

from __future__ import annotations

SCHEMES = ("int8", "fp8", "bf16", "w4a16", "w4a8", "w8a16")
LAYOUTS = ("slide", "gqs", "dense")
PRESETS = ("fast", "balanced", "quality", "paper")
GPUS = ("a100", "rtx4090", "h100", "b200", "rtx5080", "gb10", "h200")
"""The GPUs that allocate.speed has times of."""

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
