"""Small GGUF files, written by the gguf package from a model of transformers and a tokenizer of tokenizers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.twins.gguf_blocks import for_llama_cpp

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 96, 4, 2, 2, 320
PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""llama.cpp's names of the parts of a layer."""
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
BEGIN, END, TOOL, WHOLE = "<|begin|>", "<|end|>", "<tool>", "Ġspaces"
TEXT = (
    "It's 1234567 o'clock, isn't it? They'LL see.  Two  spaces,\n\n\ttabs 42 and naïve café — e\u0301 99 Bäume!\n"
    "def f(x):\n    return x ** 2  # 3.14159\r\n <tool> is text, <|end|> ends it\n"
)
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "smollm": r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+",
    "llama-bpe": rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORD}|\p{{N}}|{_REST}",
}
"""The regular expressions of words, as llama.cpp has them (llama-vocab.cpp)."""


@dataclass(frozen=True)
class Written:
    """A GGUF file and its model. stored: the bytes of each tensor by its name in transformers, and their type."""

    path: Path
    model: Any
    stored: dict[str, tuple[bytes, str]]


def model(kind: str = "llama", **config: Any) -> Any:
    """A random model in float32 whose layers all matter."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "initializer_range": 0.2,
        **({"head_dim": HIDDEN // HEADS} if kind == "qwen3" else {}), **config,
    }  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **fields))
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith("norm.weight"):
                tensor.copy_(torch.linspace(0.5, 1.5, len(tensor)))
            elif name.endswith("bias"):
                tensor.copy_(torch.linspace(-0.5, 0.5, len(tensor)))
    return made.eval()


def tokenizer(rule: str = "gpt-2") -> Tokenizer:
    """A byte-level BPE tokenizer of VOCABULARY tokens that splits by a rule.

    Its merges come from words of GPT-2's rule, so that another rule makes a difference: numbers are merged, too. No
    merges lead to WHOLE, which only a tokenizer that looks for whole words first returns.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = splitting("gpt-2")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT, "1234567 42 99 3.14159 " * 3], trainer)
    parts = json.loads(made.to_str())["model"]
    vocabulary, merges = {**parts["vocab"], WHOLE: VOCABULARY - 2}, [tuple(merge) for merge in parts["merges"]]
    made.model = models.BPE(vocabulary, merges, ignore_merges=rule == "llama-bpe")
    made.add_special_tokens([BEGIN, END])
    made.add_tokens([TOOL])
    if rule == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = splitting(rule)
    made.decoder = decoders.ByteLevel()
    return made


def splitting(rule: str) -> Any:
    """The step that splits text into words by a rule, then into bytes."""
    split = pre_tokenizers.Split(Regex(RULES[rule]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def write(
    path: Path,
    made: Any = None,
    kind: str = "F32",
    *,
    words: Tokenizer | None = None,
    rule: str = "gpt-2",
    **fields: Any,
) -> Written:
    """Write a model as GGUF, matrices in type `kind`, norms and biases in F32.

    words: the tokenizer, split by `rule`. fields: others, dots written as two underscores; None leaves one out.
    """
    made = model() if made is None else made
    architecture, config = made.config.model_type, made.config
    writer = gguf.GGUFWriter(path, architecture)
    told = {
        "context_length": 512, "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }  # fmt: skip
    for name, value in told.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    if architecture == "llama":
        writer.add_uint32("llama.rope.dimension_count", config.head_dim)
    else:
        writer.add_uint32(f"{architecture}.attention.key_length", config.hidden_size // config.num_attention_heads)
    add_byte_level(writer, words or tokenizer(rule), rule)
    add_fields(writer, fields)
    stored = {}
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored[name] = add_tensor(writer, config, name, tensor.numpy(), kind)
    finish(writer)
    return Written(path, made, stored)


def add_tensor(writer: Any, config: Any, name: str, values: numpy.ndarray, kind: str) -> tuple[bytes, str]:
    """Add a tensor as llama.cpp has it; its bytes in the order of transformers, and their type."""
    own = kind if values.ndim == 2 else "F32"
    number = gguf.GGMLQuantizationType[own]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    rows = gguf.quantize(values, number)  # of each row alone, so that their order does not matter
    ordered = for_llama_cpp(rows, heads) if heads and config.model_type == "llama" else rows
    writer.add_tensor(place(name), numpy.ascontiguousarray(ordered), raw_dtype=number)
    return rows.tobytes(), own


def place(name: str) -> str:
    """llama.cpp's name of a tensor."""
    module, _, suffix = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{suffix}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{PARTS[part]}.{suffix}"


def add_byte_level(writer: Any, words: Tokenizer, rule: str) -> None:
    """The fields of a byte-level tokenizer."""
    parts = json.loads(words.to_str())["model"]
    by_number = sorted(words.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    tokens = [token for token, _ in by_number]
    kinds = {BEGIN: CONTROL, END: CONTROL, TOOL: USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, 1) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in parts["merges"]])
    writer.add_bos_token_id(tokens.index(BEGIN))
    writer.add_eos_token_id(tokens.index(END))


def add_fields(writer: Any, fields: dict[str, Any]) -> None:
    """Other fields, and replaced ones. None leaves one out."""
    for name, value in fields.items():
        key = name.replace("__", ".")
        for part in writer.kv_data:
            part.pop(key, None)
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)


def finish(writer: Any) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
