"""The shapes of models that are measured without their weights: the part of config.json that determines them."""

from __future__ import annotations

from typing import Any


def _llama(
    hidden: int, layers: int, inner: int, heads: int, kv_heads: int, vocabulary: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": 64 if hidden == 2048 else 128, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": _llama(2048, 16, 8192, 32, 8, 128256, tied=True),
    "Llama-3.2-3B": _llama(3072, 28, 8192, 24, 8, 128256, tied=True),
    "Llama-2-7B": _llama(4096, 32, 11008, 32, 32, 32000, tied=False),
    "Llama-2-13B": _llama(5120, 40, 13824, 40, 40, 32000, tied=False),
    "Qwen2.5-7B": _llama(3584, 28, 18944, 28, 4, 152064, tied=False),
    "Qwen2.5-14B": _llama(5120, 48, 13824, 40, 8, 152064, tied=False),
    "BitNet-2B": {
        **_llama(2560, 30, 6912, 20, 5, 128256, tied=True),
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "max_position_embeddings": 4096,
    },
}  # fmt: skip
"""By the names of core.choices.SHAPED. Qwen2.5 stands as a Llama of its shapes: without the biases of q, k and v."""
