"""Names to choose from. --help shows them, so that this module must not import torch.

The registries of schemes (core/schemes) and methods (prune/methods.py) take their names from here; a test compares
them. Presets, layouts and GPUs are named where they are defined, in modules that do not import torch either.
"""

from __future__ import annotations

SCHEMES = INT8, FP8, BF16, W4A16, W4A8, W8A16 = "int8", "fp8", "bf16", "w4a16", "w4a8", "w8a16"
"""The number schemes."""

PRUNING = MAGNITUDE, WANDA, HESSIAN, SWEEP_REFIT, ALPS, GQSA, SALIENCY = (
    "magnitude", "wanda", "hessian", "obs", "alps", "gqsa", "saliency",
)  # fmt: skip
"""The methods that prune: to 2:L patterns, and to patterns of whole groups."""
ROUNDING = RTN, GPTQ = "rtn", "gptq"
"""The methods that only round."""

CODES = TERNARY, FULL = "ternary", "full"
"""Which codes ternary weights may become: -1, 0 and 1 only, or all of the scheme."""

ACTIVATIONS = ("quantized", "float")
"""How inputs of quantized linears are treated: quantized to 8 bits per token, as in serving, or left as floats."""

DISK = "disk"
PLACES = ("device", "cpu", DISK)
"""Where calibration keeps hidden states between layers: on the device that computes, in CPU memory or in files."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""The precision of the model in calibration and training."""

ROTATED = HEADS, ALL = "heads", "all"
"""What a rotation turns: the values of heads alone, or the residual stream too."""

HOSTS = ("transformers", "vllm")
"""Programs that run checkpoints, each with dense kernels of its own."""

SHAPED = (
    "Llama-3.2-1B", "Llama-3.2-3B", "Llama-2-7B", "Llama-2-13B", "Qwen2.5-7B", "Qwen2.5-14B", "BitNet-2B",
)  # fmt: skip
"""Models whose shapes api.tuning knows."""

SERVED = ("gqsa-table-10", "gqsa-table-13", "gqsa-table-16")
"""Published tables that `bench serve` measures."""
