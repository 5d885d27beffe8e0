"""config.json of the models whose conversion is promised, as their repositories have them, less what decides nothing.

The same numbers hold for the base models and for the -Instruct ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
_QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}


def _qwen(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool, longest: int
) -> dict[str, Any]:
    return {
        **_QWEN,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "vocab_size": 151936 if tied else 152064,
        "max_position_embeddings": longest,
    }


@dataclass(frozen=True)
class Published:
    """A published model: Hub id, config.json, all its parameters as the Hub counts them (a tied head once).

    recipe: the one to begin with. instruct: whether there is a chat model beside it, under the same id and -Instruct.
    """

    hub_id: str
    config: dict[str, Any]
    parameters: int
    recipe: str = "int8-2of8"
    instruct: bool = True


BITNET = Published(
    "microsoft/bitnet-b1.58-2B-4T-bf16",
    {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "max_position_embeddings": 4096,
        "num_attention_heads": 20,
        "num_hidden_layers": 30,
        "num_key_value_heads": 5,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
        },
    },
    2_412_820_480,
    instruct=False,
)

PROMISED = (
    Published(
        "meta-llama/Llama-3.2-1B",
        {
            **_LLAMA,
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
        },
        1_235_814_400,
        recipe="int8-2of10",
    ),
    Published(
        "meta-llama/Llama-3.2-3B",
        {
            **_LLAMA,
            "head_dim": 128,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_hidden_layers": 28,
        },
        3_212_749_824,
    ),
    Published("Qwen/Qwen2.5-0.5B", _qwen(896, 4864, 24, 14, 2, tied=True, longest=32768), 494_032_768, "int8-2of10"),
    Published(
        "Qwen/Qwen2.5-1.5B", _qwen(1536, 8960, 28, 12, 2, tied=True, longest=131072), 1_543_714_304, "int8-2of10"
    ),
    Published("Qwen/Qwen2.5-3B", _qwen(2048, 11008, 36, 16, 2, tied=True, longest=32768), 3_085_938_688),
    Published("Qwen/Qwen2.5-7B", _qwen(3584, 18944, 28, 28, 4, tied=False, longest=131072), 7_615_616_512),
    Published("Qwen/Qwen2.5-14B", _qwen(5120, 13824, 48, 40, 8, tied=False, longest=131072), 14_770_033_664),
    BITNET,
)
"""Every promised model. After a change `python -m tests.helpers.model_table` writes recipes/MODELS.md again."""
