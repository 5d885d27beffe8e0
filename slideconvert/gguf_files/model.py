"""What a GGUF file says of its model: the config, and the tensors of transformers by those of the file.

transformers has the tables: names of config fields, names of tensors, and what llama.cpp changes in weights (it
reorders the rows of q_proj and k_proj of a Llama for its rotary embedding).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import TORCH_DTYPES, Checkpoint
from ..errors import InputError, one_line
from ..models.families import architecture_of
from ..models.load import empty_model, model_config
from .container import GgufFile, GgufTensor, gguf_package

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Classes of transformers by general.architecture, which for these is their model_type, too."""
DTYPES = {"F32": "F32", "F16": "F16"}
"""The dtype of the folder by the type of most weights; BF16 for all others."""
ROPE_FACTORS = "rope_freqs.weight"
"""The divisor of each rotary frequency, for models like Llama 3.1 that scale them."""
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What the scaling of all Llama 3 models has in common; the file holds the divisors that follow from it."""
NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
"""Fields without which transformers would take the sizes of another model."""
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}
"""The special tokens of config.json and their names in GGUF."""
PIECE = 1 << 22
"""Elements of an embedding or head that are dequantized at once."""


@dataclass(frozen=True)
class GgufModel:
    """A model in a GGUF file.

    config: of config.json. names: the tensor of the file for each tensor of the model, in order of layers. dtype: of
    all tensors that are written, a name of the safetensors container.
    """

    file: GgufFile
    config: dict[str, Any]
    names: dict[str, str]
    dtype: str

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors of the model as they are written."""
        return [TensorSpec(name, self.dtype, self.file.tensors[stored].shape) for name, stored in self.names.items()]

    @property
    def origin(self) -> str:
        """What the file holds, in words: "GGUF Q4_1, dequantized to BF16 (210 tensors in Q4_1, …)"."""
        kind = self.file.main_kind
        change = "" if kind == self.dtype else f", dequantized to {self.dtype}"
        return f"GGUF {kind}{change} (tensors: {self.file.kinds})"

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor of the model, dequantized, in one or several consecutive pieces.

        InputError if the file cannot be read, or for a type without dequantization in the gguf package.
        """
        tensor = self.file.tensors[self.names[name]]
        process = _processor(self.file.architecture, self.config).process
        if architecture_of(self.config).layer_of(name) is not None or len(tensor.shape) < 2:
            yield _torch(process(_dequantized(self.file, tensor), tensor.name).weights, self.dtype)
            return
        rows = max(1, PIECE // tensor.shape[1])  # of an embedding or head, whose rows keep their order
        for start in range(0, tensor.shape[0], rows):
            yield _torch(_dequantized(self.file, tensor, start, start + rows), self.dtype)


def read_model(file: GgufFile) -> GgufModel:
    """The model in a GGUF file.

    InputError for an architecture or a rotary embedding that is not known, and for tensors that are missing, have
    another shape or do not belong to the model.
    """
    config = _config(file)
    model = empty_model(Checkpoint(file.path, config, {}))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = {name: stored for stored, name in _names(file, model, config).items() if stored in file.tensors}
    architecture = architecture_of(config)
    tied = {f"{architecture.head}.weight"} if config["tie_word_embeddings"] else set()
    if missing := [name for name in shapes if name not in names and name not in tied]:
        raise InputError(
            f"{file.path}: {len(missing)} tensors of a {file.architecture} are missing, such as {missing[0]}",
            hint="the file is incomplete: make it again",
        )
    if surplus := sorted(file.tensors.keys() - set(names.values()) - {ROPE_FACTORS}):
        raise InputError(
            f"{file.path}: tensor {surplus[0]} does not belong to a {file.architecture} as transformers knows it "
            f"({len(surplus)} such tensors)",
            hint="use the safetensors version of the model",
        )
    for name, stored in names.items():
        if file.tensors[stored].shape != shapes[name]:
            raise InputError(
                f"{file.path}: tensor {stored} has shape {list(file.tensors[stored].shape)}, by its fields it would be "
                f"{list(shapes[name])}",
                hint="the file is damaged: download it again",
            )
    ordered = {name: names[name] for name in shapes if name in names}
    return GgufModel(file, config, ordered, DTYPES.get(file.main_kind, "BF16"))


def _config(file: GgufFile) -> dict[str, Any]:
    """The fields of config.json."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    name = file.architecture
    if name not in ARCHITECTURES:
        raise InputError(
            f"{file.path}: architecture '{one_line(name)[:40]}' is not read from GGUF",
            hint=f"known are {', '.join(ARCHITECTURES)}; use the safetensors version of the model",
        )
    fields = file.fields
    if experts := fields.get(f"{name}.expert_count"):
        raise InputError(f"{file.path}: a mixture of {experts} experts", hint="only dense models are supported")
    if (scaling := fields.get(f"{name}.rope.scaling.type", "none")) != "none":
        raise InputError(
            f"{file.path}: rotary embeddings with scaling '{one_line(str(scaling))[:40]}'",
            hint="use the safetensors version of the model",
        )
    for key in NEEDED:
        file.field(f"{name}.{key}", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{file.path}: no token_embd.weight", hint="the file is incomplete: make it again")
    table = {**GGUF_CONFIG_MAPPING[name], "attention.key_length": "head_dim"}
    told = {ours: fields[key] for theirs, ours in table.items() if ours and (key := f"{name}.{theirs}") in fields}
    tokens = {f"{kind}_token_id": fields.get(f"tokenizer.ggml.{word}_token_id") for kind, word in TOKENS.items()}
    values: dict[str, Any] = {
        **{key: _shortest(value) for key, value in told.items()},
        **{key: value for key, value in tokens.items() if value is not None},
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": str(TORCH_DTYPES[DTYPES.get(file.main_kind, "BF16")]).removeprefix("torch."),
        **({"attention_bias": True} if name == "llama" and "blk.0.attn_q.bias" in file.tensors else {}),
    }
    if ROPE_FACTORS in file.tensors:
        values["rope_scaling"] = _llama3_rope(file, name, values)
    made = {"architectures": [ARCHITECTURES[name]], **_told(file, name, values).to_diff_dict(), **values}
    made.pop(
        "rope_parameters", None
    )  # older loaders read rope_theta and rope_scaling alone, newer ones read both forms
    return made


def _shortest(value: Any) -> Any:
    """A number of 32 bits with as many digits as tell it from others: 1e-05, not 9.999999747378752e-06."""
    return float(str(numpy.float32(value))) if isinstance(value, float) else value


def _llama3_rope(file: GgufFile, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a Llama 3 whose divisors the file holds. InputError if they follow another rule."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    divisors = _torch(_dequantized(file, file.tensors[ROPE_FACTORS]), "F32")
    rope: dict[str, Any] = {"rope_type": "llama3", "factor": float(divisors.max()), **LLAMA3_ROPE}
    config = _told(file, name, {**values, "rope_scaling": rope})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(len(scaled)) / len(scaled))
    # Both sides round to float32 a few times; another rule differs by whole per cents.
    if len(divisors) != len(scaled) or not torch.allclose(plain / scaled, divisors, rtol=1e-4):
        raise InputError(
            f"{file.path}: {ROPE_FACTORS} scales the rotary embedding by another rule than that of Llama 3",
            hint="use the safetensors version of the model",
        )
    return rope


def _told(file: GgufFile, name: str, values: dict[str, Any]) -> Any:
    """The config of transformers for these fields. InputError for fields that make none."""
    return model_config(Checkpoint(file.path, {"model_type": name, **values}, {}))


def _names(file: GgufFile, model: Any, config: dict[str, Any]) -> dict[str, str]:
    """Names of the model's tensors by those of the file."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    names: dict[str, str] = get_gguf_hf_weights_map(model, _processor(file.architecture, config))
    return names


def _processor(name: str, config: dict[str, Any]) -> Any:
    """transformers' object that undoes the changes of llama.cpp to the weights of an architecture."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(name, TensorProcessor)(config=config)


def _torch(values: Any, dtype: str) -> Tensor:
    """An array of numpy as a tensor of a dtype of the safetensors container."""
    return torch.from_numpy(numpy.require(values, requirements=["C", "W"])).to(TORCH_DTYPES[dtype])


def _dequantized(file: GgufFile, tensor: GgufTensor, start: int = 0, stop: int | None = None) -> Any:
    """Rows start … stop of a matrix, or a whole vector: float32 in numpy.

    Reads the file instead of mapping it: a map would count every page as memory of this process, and a file that
    shrinks while it is mapped would kill the process.
    """
    gguf = gguf_package(file.path)
    kind = gguf.GGMLQuantizationType[tensor.kind]
    rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
    stop, stride = min(rows, stop or rows), tensor.bytes // rows
    try:
        with file.path.open("rb") as opened:
            opened.seek(tensor.start + start * stride)
            data = opened.read((stop - start) * stride)
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({error.strerror})", hint="did the file change?") from error
    if len(data) != (stop - start) * stride:
        raise InputError(f"{file.path}: ended inside tensor {tensor.name}", hint="did the file change?")
    shape = (stop - start, *tensor.shape[1:]) if len(tensor.shape) == 2 else tensor.shape
    stored = numpy.frombuffer(data, numpy.uint8).reshape(gguf.quant_shape_to_byte_shape(shape, kind))
    try:
        return gguf.dequantize(stored, kind).reshape(shape)
    except NotImplementedError as error:
        raise InputError(
            f"{file.path}: tensor {tensor.name} has type {tensor.kind}, which the gguf package cannot dequantize",
            hint="get the model in another type, such as Q8_0 or BF16",
        ) from error
