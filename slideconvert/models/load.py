"""Load any checkpoint we can read (BF16, W8A8 of others, ours in any layout) into a transformers model.

No code from the checkpoint runs: the architecture is transformers' own, chosen by model_type, and the weights are
put in by us, so that the numbers do not depend on which loaders are installed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.reader import Checkpoint
from ..core.choices import ACTIVATIONS
from ..core.quantize import QuantizedWeight
from ..errors import InputError, pick
from ..formats.base import StoredLinear
from ..formats.quantization_config import check_quantization
from ..formats.record import Record, describe_linear, read_record
from ..formats.registry import format_for
from ..kernels.linear import SlideSparseLinear
from ..kernels.spec import LinearSpec
from ..runtime.slidesparse_record import DENSE, RECORD, SETTINGS
from .families import decoder_linears

NOT_ARCHITECTURE = (
    "quantization_config",
    RECORD,
    SETTINGS,
    "auto_map",
    "architectures",
    "dtype",
    "torch_dtype",
    "model_type",
)


def load_model(
    checkpoint: Checkpoint,
    *,
    activations: str = "quantized",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: torch.dtype | None = None,
    backend: str = "reference",
) -> nn.Module:
    """The checkpoint as a transformers causal language model in eval mode, computing in `dtype`.

    weights: in which decoder linears that are not quantized lie, `dtype` unless given: where a model runs in bfloat16
    (precision.running), its linears may lie so. backend: of the quantized linears; the reference measures the
    checkpoint and not the machine, auto is fast.

    InputError if tensors are missing or left over, or the architecture is unknown.
    """
    pick(activations, ACTIVATIONS, "kind of activations")
    check_quantization(checkpoint.config, str(checkpoint.path))
    record = read_record(checkpoint.config, str(checkpoint.path))
    linears = [linear.name for linear in decoder_linears(checkpoint.config)]
    model = empty_model(checkpoint, dtype)
    used = set()
    for name in linears:
        linear, tensors = _linear(checkpoint, record, name, activations, device, weights or dtype, backend)
        model.set_submodule(name, linear)
        used |= tensors
    rest = {name: checkpoint.read(name) for name in checkpoint.tensors if name not in used}
    floats = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device) for name, tensor in rest.items()
    }
    _, unexpected = model.load_state_dict(floats, strict=False, assign=True)
    model.tie_weights()
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent or unexpected:
        name, why = (absent[0], "is missing") if absent else (unexpected[0], "has no submodule in the architecture")
        raise InputError(f"{checkpoint.path}: tensor {name} {why}", hint="the checkpoint and its config.json disagree")
    moved: nn.Module = model.to(device)
    return moved.eval()


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint's architecture as transformers' causal language model, its parameters on the meta device."""
    import accelerate
    import transformers

    fields = {key: value for key, value in checkpoint.config.items() if key not in NOT_ARCHITECTURE}
    config = transformers.AutoConfig.for_model(checkpoint.config["model_type"], **fields)
    with accelerate.init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def _linear(
    checkpoint: Checkpoint,
    record: Record | None,
    name: str,
    activations: str,
    device: str,
    dtype: torch.dtype,
    backend: str,
) -> tuple[nn.Module, set[str]]:
    """One decoder linear as a module, and the names of the tensors it was made of."""
    stored = describe_linear(checkpoint, record, name)
    parts = {spec.name: checkpoint.read(spec.name) for spec in stored.tensors}
    used = set(parts)
    bias = None
    if f"{name}.bias" in checkpoint.tensors:
        bias = checkpoint.read(f"{name}.bias")
        used.add(f"{name}.bias")
    term = None if bias is None else bias.to(device)
    try:
        if activations == "quantized" and (quantized := _quantized(stored, parts)):
            spec, named = quantized
            moved = {part: tensor.to(device) for part, tensor in named.items()}
            return SlideSparseLinear.of(spec, moved, term, backend=backend), used
        weight = stored.decode(parts, name)
    except ValueError as error:
        raise InputError(f"{checkpoint.path}: {name}: {error}", hint="convert the model again") from error
    floats = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
    return float_linear(floats, bias, dtype).to(device), used


def _quantized(stored: StoredLinear, tensors: dict[str, Tensor]) -> tuple[LinearSpec, dict[str, Tensor]] | None:
    """The spec and stored tensors of a linear that computes with quantized activations; None of floats."""
    if stored.coding:  # ternary weights compute as the codes that they stand for
        weight = stored.decode(tensors, stored.name)
        assert isinstance(weight, QuantizedWeight)
        stored = replace(stored, scheme=weight.scheme, format=format_for(DENSE, weight.scheme, stored.pattern))
        tensors = stored.encode(weight)
    spec = stored.linear_spec
    if spec is None:
        return None
    named = {name.removeprefix(f"{stored.name}."): tensor for name, tensor in tensors.items()}
    if spec.plain:  # checkpoints of others have scales of any float, as [N] or [N, 1]
        named["weight_scale"] = named["weight_scale"].float().view(-1, 1)
    return spec, named


def float_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A plain linear holding `weight` [out, in] and `bias` [out] in `dtype`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, as its tokenizer.json stands if it has one.

    AutoTokenizer is only asked where there is none: for some architectures (qwen2) it rebuilds the tokenizer with a
    splitting rule of its own, and silently gives other tokens than the file.
    InputError if there is none that transformers can load without running the checkpoint's code.
    """
    import transformers

    try:
        if (checkpoint.path / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint.path)
        return transformers.AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: no usable tokenizer ({reason})", hint="add the tokenizer files"
        ) from error
