"""The vLLM plugin: claims the checkpoints that slideconvert wrote and leaves every other one to vLLM.

vLLM calls `register` in each of its processes, whatever it serves. So this module costs nothing but the claim; what
loads and runs the linears is imported when a checkpoint is claimed.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from .slidesparse_record import METHOD, RECORD, is_ours

NAME = "slidesparse"


class SlideSparseClaim(QuantizationConfig):
    """What vLLM asks before it chooses a quantization method. Never instantiated: from_config gives the real one."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Our name for a compressed-tensors checkpoint with our record, or in our slide layout; None for others.

        One in the slide layout without the record cannot be run, but is claimed, so that we say why.
        """
        if user_quant not in (None, METHOD, NAME):
            return None  # vLLM says that it does not match
        return NAME if is_ours(hf_quant_cfg, getattr(hf_config, RECORD, None)) else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig:
        """The configuration of a claimed checkpoint from its quantization_config."""
        from .vllm_quantization import SlideSparseConfig

        return SlideSparseConfig.from_config(config)


def register() -> None:
    """Tell vLLM about us; harmless when repeated."""
    register_quantization_config(NAME)(SlideSparseClaim)
