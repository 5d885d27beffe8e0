"""Load any supported checkpoint (BF16, W8A8 of other tools, ours in any layout) into a transformers model.

No code of the checkpoint runs: model_type selects the architecture of transformers, and this module sets the weights,
so that results do not depend on the installed loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.files import CONFIG, TOKENIZER_CONFIG
from ..checkpoint.reader import Checkpoint, read_json
from ..core.choices import ACTIVATIONS
from ..core.quantize import QuantizedWeight
from ..errors import InputError, SlideConvertError, pick
from ..formats.base import StoredLinear
from ..formats.foreign import check_quantization
from ..formats.record import describe_linear, read_record
from ..formats.registry import format_for
from ..kernels.linear import SlideSparseLinear
from ..kernels.spec import LinearSpec
from ..runtime.slidesparse_record import DENSE, RECORD, SETTINGS
from .completeness import check_tied, model_faults, shapes_of, surplus_tensors
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
    # How to run it, not what it is: loaders disagree on these, and some need packages that are not installed.
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "return_dict",
    "use_return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
)
"""Fields of config.json that the architecture does not depend on."""


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

    activations: whether quantized linears quantize inputs ("quantized") or are dequantized ("float"). weights: the
    dtype of decoder linears that are not quantized, by default `dtype`; bfloat16 suffices for a model that runs in
    bfloat16 (precision.running). backend: of quantized linears; "reference" gives the same results on every machine,
    "auto" is fast.

    Tensors of modules that the model does not have are left out. InputError if any are missing, have another shape or
    are not those of their module, or the architecture is unknown.
    """
    pick(activations, ACTIVATIONS, "kind of activations")
    check_quantization(checkpoint.config, str(checkpoint.path))
    record = read_record(checkpoint.config, str(checkpoint.path))
    model = empty_model(checkpoint, dtype)
    described = shapes_of(model)
    linears = [describe_linear(checkpoint, record, linear.name) for linear in decoder_linears(checkpoint.config)]
    if faults := model_faults(checkpoint, described, linears):
        raise faults[0]
    check_tied(checkpoint)
    used = set(surplus_tensors(checkpoint, described))
    for stored in linears:
        linear, tensors = _linear(checkpoint, stored, activations, device, weights or dtype, backend)
        model.set_submodule(stored.name, linear)
        used |= tensors
    rest = {name: checkpoint.read(name) for name in checkpoint.tensors if name not in used}
    floats = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(device) for name, tensor in rest.items()
    }
    model.load_state_dict(floats, strict=False, assign=True)
    model.tie_weights()
    moved: nn.Module = model.to(device)
    return moved.eval()


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint's architecture as transformers' causal language model, its parameters on the meta device.

    InputError if transformers cannot build it, and for absurd sizes, which would take all memory.
    """
    import accelerate
    import transformers
    from transformers.initialization import no_init_weights

    config = model_config(checkpoint)
    # Drawing random numbers for parameters without storage takes two thirds of the time.
    with _building(checkpoint), accelerate.init_empty_weights(include_buffers=False), no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()  # a part of the initialization
    return model


def model_config(checkpoint: Checkpoint) -> Any:
    """What transformers reads of the architecture from config.json, as its config.

    InputError if it cannot, and for absurd sizes.
    """
    import transformers

    decoder_linears(checkpoint.config)  # checks the sizes that would take all memory
    layers = checkpoint.config["num_hidden_layers"]
    if checkpoint.tensors and layers > len(checkpoint.tensors):
        raise InputError(
            f"{checkpoint.path / CONFIG}: {layers} layers (num_hidden_layers), but {len(checkpoint.tensors)} tensors",
            hint=f"weights and {CONFIG} do not belong together: take both from the same place",
        )
    fields = {key: value for key, value in checkpoint.config.items() if key not in NOT_ARCHITECTURE}
    with _building(checkpoint):
        return transformers.AutoConfig.for_model(checkpoint.config["model_type"], **fields)


@contextmanager
def _building(checkpoint: Checkpoint) -> Iterator[None]:
    """InputError in place of what transformers raises for a config.json that it cannot build a model from."""
    try:
        yield
    except Exception as error:  # each field has its own way to fail
        raise foreign_error(checkpoint.path / CONFIG, "transformers cannot build this model", error) from error


def foreign_error(where: Path, what: str, error: Exception, hint: str = "") -> InputError:
    """An error of another library as ours. where: the file or folder that caused it."""
    cause = error.__cause__ or error
    reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)[:300]
    return InputError(f"{where}: {what} ({reason})", hint=hint or f"take {CONFIG} from the model's repository")


@contextmanager
def running_model(checkpoint: Checkpoint) -> Iterator[None]:
    """InputError for errors of transformers and torch in the block, which runs a model: fields of config.json that it
    was built with may not fit together. Errors of ours and a lack of memory pass."""
    try:
        yield
    except (SlideConvertError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise foreign_error(checkpoint.path / CONFIG, "the model cannot run", error) from error


def _linear(
    checkpoint: Checkpoint,
    stored: StoredLinear,
    activations: str,
    device: str,
    dtype: torch.dtype,
    backend: str,
) -> tuple[nn.Module, set[str]]:
    """A decoder linear as a module, and the names of its tensors."""
    name = stored.name
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
    """The spec and stored tensors of a linear that runs with quantized activations; None for unquantized weights."""
    if stored.coding:  # ternary weights run as codes
        weight = stored.decode(tensors, stored.name)
        assert isinstance(weight, QuantizedWeight)
        stored = replace(stored, scheme=weight.scheme, format=format_for(DENSE, weight.scheme, stored.pattern))
        tensors = stored.encode(weight)
    spec = stored.linear_spec
    if spec is None:
        return None
    named = {name.removeprefix(f"{stored.name}."): tensor for name, tensor in tensors.items()}
    if spec.plain:  # scales of other tools have any float dtype, and shape [N] or [N, 1]
        named["weight_scale"] = named["weight_scale"].float().view(-1, 1)
    return spec, named


def float_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """An nn.Linear with `weight` [out, in] and `bias` [out] in `dtype`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


def tokenizer_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of tokenizer_config.json, of which transformers keeps some; {} without it. Raises as `read_json`."""
    path = checkpoint.path / TOKENIZER_CONFIG
    return read_json(path) if path.is_file() else {}


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, from its tokenizer.json if it has one.

    Only other checkpoints use AutoTokenizer: for some architectures (qwen2) it rebuilds the tokenizer with its own
    splitting rule, which returns other tokens than the file without a warning. InputError if transformers can load no
    tokenizer without running the checkpoint's code.
    """
    import transformers

    try:
        if (checkpoint.path / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint.path)
        return transformers.AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except Exception as error:  # of transformers and tokenizers, which name no kinds
        raise foreign_error(checkpoint.path, "no usable tokenizer", error, hint="add the tokenizer files") from error
