"""Number schemes: how a weight and its activations are stored and scaled. Everything derived lives here.

Both 8-bit schemes are symmetric, so that a pruned code means exactly zero. Weights have one float32 scale
per output channel, scale = absmax / qmax; activations are quantized per token when the model runs, by the
same rule. The scale is kept in float32: bfloat16 would move every weight of a row by up to 0.4 %.

Ternary weights (BitNet) are stored likewise, of all codes only -1, 0 and 1 in use, scale = their magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .errors import pick


@dataclass(frozen=True)
class Scheme:
    """One number scheme.

    name: the word on the command line and in recipes.
    dtype: name of the torch dtype of the stored weights.
    bytes: bytes of one stored weight.
    qmax: largest code magnitude; scale = absmax / qmax. 0 for the unquantized scheme.
    ct_type, ct_format: how compressed-tensors calls the number type and the dense storage.
    ternary: weights are -1, 0 or 1 times the scale of their row, also where they are stored as floats.
    """

    name: str
    dtype: str
    bytes: int
    qmax: float
    ct_type: str = ""
    ct_format: str = ""
    ternary: bool = False

    @property
    def quantized(self) -> bool:
        return self.qmax > 0

    @property
    def as_ternary(self) -> Scheme:
        """The same storage for weights that stay ternary."""
        return replace(self, qmax=1.0 if self.quantized else 0.0, ternary=True)

    @property
    def grid(self) -> Scheme:
        """In which codes are found: its own, or those of INT8 for ternary weights that are stored as floats."""
        return INT8.as_ternary if self.ternary and not self.quantized else self

    def config_group(self, targets: list[str], storage: str) -> dict[str, Any]:
        """The compressed-tensors config group for these targets, with `storage` as its format.

        Only keys that stock transformers and stock vLLM accept: anything more is a validation error there.
        """
        common = {"num_bits": 8 * self.bytes, "type": self.ct_type, "symmetric": True}
        return {
            "targets": targets,
            "weights": {**common, "strategy": "channel", "dynamic": False},
            "input_activations": {**common, "strategy": "token", "dynamic": True},
            "format": storage,
        }


INT8 = Scheme("int8", "int8", 1, 127.0, "int", "int-quantized")
FP8 = Scheme("fp8", "float8_e4m3fn", 1, 448.0, "float", "float-quantized")
BF16 = Scheme("bf16", "bfloat16", 2, 0.0)

SCHEMES = {scheme.name: scheme for scheme in (INT8, FP8, BF16)}


def parse_scheme(name: str) -> Scheme:
    """'int8' -> Scheme. InputError with the nearest word for an unknown one."""
    return SCHEMES[pick(name, SCHEMES, "scheme")]
