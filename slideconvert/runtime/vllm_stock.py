"""vLLM's own dense kernels as a way to run our linears: what the rule compares with, and what runs where it wins.

The way is the W8A8 scheme that vLLM would give a dense checkpoint on this device: its quantize kernel and its product.
Where that reads codes [N, K] in rows, as CUTLASS does, it shares one prepared weight with our own dense ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import vllm
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

from ..kernels.backends.base import Prepared
from ..kernels.backends.choose import AUTO, BOTH, Host, Settings
from ..kernels.backends.dense import DenseCodes
from ..kernels.operand import Operand
from ..kernels.slide_spec import SlideSpec, SlideWeight

NAME = "model.layers.0.mlp.down_proj"
"""Of the layer that stands for all of a shape: vLLM asks for names."""
NUMBERS = {torch.int8: ("int", "int-quantized"), torch.float8_e4m3fn: ("float", "float-quantized")}
"""By the dtype of codes, what a dense checkpoint of them calls its numbers and its format."""


Product = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype, Tensor | None], Tensor]
"""codes [M, K], weight [K, N], scale [M, 1], scale of the weight [N, 1], dtype, bias [N] -> [M, N] of the dtype."""
CUTLASS = frozenset({"CutlassInt8ScaledMMLinearKernel", "CutlassFP8ScaledMMLinearKernel"})
"""vLLM's classes of kernels that call `cutlass_scaled_mm`."""


class StockLinear(nn.Module):
    """Stands for a linear of vLLM: what its schemes ask of one. They find it as a Linear, by its class's name."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.input_size = self.input_size_per_partition = columns
        self.output_size = self.output_size_per_partition = rows
        self.output_partition_sizes, self.params_dtype = [rows], torch.get_default_dtype()


@dataclass(frozen=True)
class Template:
    """A layer of one shape as vLLM prepared it. names: of its tensors. words: everything else that it holds. in_rows:
    whether its weight is codes [N, K] in rows and a scale for each. product: its product alone, of codes that were
    quantized before; None if it has none of its own, or reads the weight in another form."""

    scheme: Any
    names: tuple[str, ...]
    words: dict[str, Any]
    in_rows: bool
    product: Product | None


class Stock(DenseCodes):
    """vLLM's scheme for a dense checkpoint."""

    name = "stock"

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._template = template(spec.rows, spec.columns, spec.dtype, self.device)
        if not self._template.in_rows:
            self.form = self.name
            self.tensors = len(self._template.names)  # type: ignore[misc]

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        try:
            template(spec.rows, spec.columns, spec.dtype, device)
        except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
            return f"vLLM cannot run it: {error}".partition("\n")[0]
        return ""

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        if self._template.in_rows:
            return super().prepare(weight)
        spec = self.spec
        _, layer = build(spec.rows, spec.columns, spec.dtype, self.device, weight)
        return tuple(getattr(layer, name).data for name in self._template.names)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        if self._template.product is None:
            return None
        return Operand(self.spec.columns, self.spec.dtype), tokens

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        assert self._template.product is not None
        weight, weight_scale = self._weight(prepared)
        return self._template.product(codes, weight, scale, weight_scale, dtype, bias)

    def _weight(self, prepared: Prepared) -> tuple[Tensor, ...]:
        """As vLLM holds it."""
        if not self._template.in_rows:
            return tuple(prepared)
        codes, scale = prepared
        return codes.view(self.spec.dtype).T, scale.view(-1, 1)

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        prepared = self._weight(prepared)
        held = dict(zip(self._template.names, prepared, strict=True))
        layer = SimpleNamespace(**self._template.words, **held)
        out: Tensor = self._template.scheme.apply_weights(layer, x, bias)
        return out


@cache
def template(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Template:
    """What vLLM makes of a layer of this shape; made once. RuntimeError if that does not hold the whole weight; other
    errors are vLLM's own."""
    scheme, layer = build(rows, columns, dtype, device)
    tensors: dict[str, Any] = dict(layer.named_parameters())
    if sum(one.nbytes for one in tensors.values()) < rows * columns:
        raise RuntimeError(f"{type(scheme).__name__} keeps the weight outside of the layer")
    words = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
    absent = {name: None for name, tensor in layer._parameters.items() if tensor is None}
    found = {name: (one.dtype, tuple(one.shape), one.stride()) for name, one in tensors.items()}
    in_rows = found == {
        "weight": (dtype, (columns, rows), (1, columns)),
        "weight_scale": (torch.float32, (rows, 1), (1, 1)),
    }
    product = product_of(scheme) if in_rows else None
    return Template(scheme, tuple(sorted(tensors)), {**words, **absent}, in_rows, product)


def product_of(scheme: Any) -> Product | None:
    """Of a scheme whose weight is codes in rows: what it calls once activations are quantized, if that is CUTLASS.
    Others may want padding, or scales in another form."""
    kernels = (type(getattr(scheme, name, None)).__name__ for name in ("kernel", "fp8_linear"))
    if not CUTLASS.intersection(kernels):
        return None
    from vllm import _custom_ops as ops

    product: Product = ops.cutlass_scaled_mm
    return product


def build(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, weight: SlideWeight | None = None
) -> tuple[Any, Any]:
    """vLLM's scheme, and a layer of this shape after its weights were loaded: zeros, or `weight`."""
    kind, stored = NUMBERS[dtype]
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    words = {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"group_0": group}, "ignore": []}
    layer: Any = StockLinear(rows, columns)
    scheme = CompressedTensorsConfig.from_config(words).get_scheme(layer, NAME)
    with torch.device(device):
        scheme.create_weights(
            layer=layer, input_size=columns, input_size_per_partition=columns, output_size=rows,
            output_partition_sizes=[rows], params_dtype=torch.get_default_dtype(), weight_loader=_loads_nothing,
        )  # fmt: skip
    layer.weight.data.view(torch.int8).copy_(torch.zeros(()) if weight is None else weight.dense.view(torch.int8))
    layer.weight_scale.data.copy_(torch.ones(()) if weight is None else weight.scale.view(-1, 1))
    scheme.process_weights_after_loading(layer)
    # Called outside of what torch.compile sees: what it would write itself, as the kernel that vLLM has for it.
    for kernel in list(vars(scheme).values()):
        for part in list(getattr(kernel, "__dict__", {}).values()):
            if isinstance(part, CustomOp) and device.type == "cuda":
                vars(part)["_forward_method"] = part.forward_cuda
    return scheme, layer


def _loads_nothing(*_: Any, **__: Any) -> None:
    """In the place of a weight loader."""


def left_to_vllm(spec: SlideSpec, device: torch.device, settings: Settings) -> str:
    """Why vLLM's own kernel runs a linear before anything is compared: ours are for CUDA devices, or its time cannot be
    taken, so that nothing could be promised of ours. "" if the rule is to choose, or a backend was asked for."""
    if settings.backend not in (AUTO, BOTH):
        return ""
    if device.type != "cuda":
        return f"the device is {device.type}"
    return Stock.refusal(spec, device)


HOST = Host("vllm", (Stock.name,), (Stock,), vllm.__version__)


@contextmanager
def standing_alone(dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """What vLLM's layers need around them where no engine runs: a configuration, one rank, the model's dtype."""
    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=dtype, is_moe=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
                initialize_model_parallel(1, 1)
            yield
    finally:
        torch.set_default_dtype(before)
