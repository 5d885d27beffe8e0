"""BitNet's ternary weights in the forms of other tools (core/ternary.py describes the bytes), and the checks that a
BitNet checkpoint is supported.

Decoding always returns codes and a scale, since only they have a meaning. We write none of BitNet's own forms; ternary
weights of scheme bf16, which we write as code times scale, are decoded in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..core.quantize import Weight
from ..core.schemes import BF16, Scheme
from ..core.ternary import FLOATS, LATENT, PACKED, PACKED_INVERSE, PER_BYTE, decode_ternary
from ..errors import InputError
from .base import FLOAT_NAMES, Found, StoredLinear
from .channels import Floats


class TernaryFloats(Floats):
    """A matrix of floats: the latent weights of training, or code times scale."""

    def __init__(self, coding: str) -> None:
        self.coding = coding

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return self.coding == FLOATS and super().stores(scheme, whole_groups=whole_groups)

    def match(self, found: Found) -> bool:
        return found.coding == self.coding and found.has("weight") and found.spec("weight").dtype in FLOAT_NAMES

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        return decode_ternary(self.coding, tensors[f"{stored.name}.weight"], None)


class TernaryPacked(Floats):
    """Four codes per byte, and one scale for the whole tensor."""

    def __init__(self, coding: str) -> None:
        self.coding = coding

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return False

    def match(self, found: Found) -> bool:
        return found.coding == self.coding

    def describe(self, found: Found) -> StoredLinear:
        spec, scale = found.matrix(), found.spec("weight_scale")
        if spec.dtype != "U8" or scale.dtype not in FLOAT_NAMES or math.prod(scale.shape) != 1:
            raise InputError(
                f"{found.name}: {spec.dtype} weights with a {scale.dtype} {list(scale.shape)} scale; packed BitNet "
                "weights are U8 with one float",
                hint="the checkpoint and the quantization_config in its config.json disagree",
            )
        shape = (spec.shape[0] * PER_BYTE, spec.shape[1])
        return StoredLinear(found.name, shape, BF16.as_ternary, found.pattern, self, (spec, scale))

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        weight, scale = (tensors[spec.name] for spec in stored.tensors)
        return decode_ternary(self.coding, weight, scale)


def read_latent(stored: StoredLinear, checkpoint: Checkpoint) -> Tensor | None:
    """The latent weights [out, in] of a ternary linear; None if the checkpoint does not have them."""
    return checkpoint.read(stored.tensors[0].name) if stored.coding == LATENT else None


def bitnet_coding(config: Mapping[str, Any]) -> str | None:
    """The form of the weights in BitNet's own checkpoints; None for other models and other quantization methods."""
    if config.get("model_type") != "bitnet":
        return None
    quantization = config.get("quantization_config")
    if quantization is None:
        return LATENT
    if quantization.get("quant_method") != "bitnet":
        return None
    # The defaults are transformers' own.
    if quantization.get("linear_class", "bitlinear") != "autobitlinear":
        return PACKED_INVERSE
    return LATENT if quantization.get("quantization_mode", "offline") == "online" else PACKED


def check_few_bits(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError for early BitNet models, whose model_type is llama."""
    bits = config.get("weight_bits")
    if isinstance(bits, int) and bits < 8:
        raise InputError(
            f"{where}: weight_bits {bits}: these weights are rounded whenever the model runs, which its model_type "
            f"'{config.get('model_type')}' does not tell",
            hint="of models trained with few bits only model_type bitnet can be taken",
        )


def check_bitnet(quantization: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless a quantization_config of method bitnet describes a supported model."""
    kept = [name for name in quantization.get("modules_to_not_convert") or [] if name != "lm_head"]
    if kept or quantization.get("use_rms_norm"):
        odd = f"leaves out {', '.join(kept)}" if kept else "has a norm before every linear (use_rms_norm)"
        raise InputError(
            f"{where}: quantized by 'bitnet', but it {odd}",
            hint="only models whose decoder linears are all ternary, as BitNet b1.58 2B4T, can be taken",
        )
