"""The ways that are timed: every backend that runs a linear, and torch's own products in 16 bits, dense and 2:4."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.backends.base import Backend, Prepared, shared
from ..kernels.backends.choose import Host, Settings, backends_for, candidates, judge, named
from ..kernels.backends.dense import DenseCodes
from ..kernels.backends.reference import SlideReference
from ..kernels.backends.routed import Routed
from ..kernels.backends.table import key_of, table_of
from ..kernels.quantize.reference import quantize
from ..kernels.slide_spec import CODES, SlideSpec, SlideWeight
from ..kernels.windows import lift_index, slide
from .case import DENSE, KERNEL

SPARSE_MULTIPLE = 64
"""Columns of torch's sparse matrices in 16 bits are multiples of this."""
AUTO = "auto"
"""The way that the rule chooses from measured times, as a served model runs."""
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*CODES, *FLOATS)
TORCH = {"int8": "int_mm", "fp8": "dense", "bf16": "linear", "fp16": "linear"}
"""The way of each precision that is torch's own dense product."""
STOCK = "stock"
"""The way that is vLLM's own dense linear."""


class Way(ABC):
    """One way to run one linear. A weight is made by `prepare`, its inputs by `given`; `call` is what is timed."""

    name: str
    version: str = ""
    """Of its kernels: times of another version are not its own."""
    most_tokens: int | None = None

    @abstractmethod
    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """weight [N, K] float32, pruned -> what `call` reads."""

    def copied(self, prepared: Prepared, weight: Tensor) -> tuple[Tensor, ...]:
        """What `prepare` made of the weight once more, in other memory."""
        return tuple(one.clone() for one in prepared)

    @abstractmethod
    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        """x [M, K] -> what `call` reads, the first of which a producer would have written."""

    @abstractmethod
    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        """-> out [M, N]."""

    @abstractmethod
    def expected(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [M, K], weight [n, K]: n rows of the weight -> the output [M, n] in float64, of the numbers that this way
        multiplies."""


class BackendWay(Way):
    """A backend, whole or its product alone."""

    def __init__(self, backend: Backend, name: str = "") -> None:
        self.backend, self.name = backend, name or backend.name
        self.version = ",".join(
            way.timed_name() for way in (backend.ways if isinstance(backend, Routed) else [backend])
        )
        self.spec: SlideSpec = backend.spec
        self.most_tokens = backend.most_tokens

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        codes, scale = quantize(weight, self.spec.dtype)
        return self.backend.prepare(SlideWeight(self.spec, scale, dense=codes))

    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        if level != KERNEL:
            return (x,)
        found = self.backend.operand(x.shape[0])
        if found is None:
            raise ValueError("it quantizes activations in its product: there is no product alone")
        operand, rows = found
        codes, scale = quantize(x, self.spec.dtype)
        spare = scale.new_ones(operand.spare + x.shape[0], 1)
        spare[: x.shape[0]] = scale
        return operand.arranged(codes, rows).contiguous(), spare[: x.shape[0]]

    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        if len(given) == 1:
            return self.backend.run(given[0], prepared, None)
        codes, scale = given
        return self.backend.run_codes(codes, scale, prepared, None, torch.bfloat16)

    def expected(self, x: Tensor, weight: Tensor) -> Tensor:
        return quantized_product(x, weight, self.spec.dtype)


class TorchLinear(Way):
    """torch.nn.functional.linear in 16 bits."""

    name = TORCH["bf16"]

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (weight.to(self.dtype),)

    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        return (x.to(self.dtype),)

    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        return torch.nn.functional.linear(given[0], prepared[0])

    def expected(self, x: Tensor, weight: Tensor) -> Tensor:
        return x.to(self.dtype).double() @ weight.to(self.dtype).double().T


class TorchSparse(TorchLinear):
    """torch's 2:4 linear in 16 bits, of windows for other patterns than 2:4; the gather is part of a layer's time."""

    name = "torch_sparse"

    def __init__(self, dtype: torch.dtype, columns: int, length: int | None, device: torch.device) -> None:
        super().__init__(dtype)
        self.length = length
        index = lift_index(columns, length, device)
        # Padding lanes read column 0, and their weights are zero.
        index = pad(index.clamp(min=0), (0, -len(index) % SPARSE_MULTIPLE))
        self._index = None if length == 4 and len(index) == columns else index

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        made = super().prepare(weight)[0]
        if self._index is not None:
            slid = slide(made, self.length)
            made = pad(slid, (0, len(self._index) - slid.shape[1]))
        return (torch.sparse.to_sparse_semi_structured(made),)

    def copied(self, prepared: Prepared, weight: Tensor) -> tuple[Tensor, ...]:
        return self.prepare(weight)  # torch clones no sparse tensors

    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        x = x.to(self.dtype)
        lifted = self._index is not None and level == KERNEL
        return (self._lift(x),) if lifted else (x,)

    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        x = given[0]
        if self._index is not None and x.shape[1] != prepared[0].shape[1]:
            x = self._lift(x)
        return torch.nn.functional.linear(x, prepared[0])

    def _lift(self, x: Tensor) -> Tensor:
        assert self._index is not None
        return x.index_select(1, self._index)


class CpuDense(Way):
    """torch's INT8 product on a CPU, between a quantization and the scales in plain torch."""

    name = TORCH["int8"]

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        return quantize(weight, torch.int8)

    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        return quantize(x, torch.int8) if level == KERNEL else (x,)

    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        codes, scale = given if len(given) == 2 else quantize(given[0], torch.int8)
        weight, by_row = prepared
        return (torch._int_mm(codes, weight.T) * scale * by_row.T).bfloat16()

    def expected(self, x: Tensor, weight: Tensor) -> Tensor:
        return quantized_product(x, weight, torch.int8)


class Untuned(Way):
    """Stands for the rule's choice where it has no times to choose by."""

    name = AUTO

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        raise ValueError("the rule has no times of this linear: run slideconvert tune")

    def given(self, x: Tensor, level: str) -> tuple[Tensor, ...]:
        return (x,)

    def call(self, given: tuple[Tensor, ...], prepared: Prepared) -> Tensor:
        raise NotImplementedError

    def expected(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


def quantized_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x [M, K], weight [n, K] -> [M, n] float64, of both as codes of `dtype` with a scale per row."""
    left, right = (codes.double() * scale.double() for codes, scale in (quantize(one, dtype) for one in (x, weight)))
    return left @ right.T


def ways_of(
    precision: str, pattern: str, shape: tuple[int, int], level: str, device: torch.device, host: Host
) -> Iterator[Way]:
    """The ways that run such a linear there, without those that refuse it. shape: N, K. pattern: dense or 2:L."""
    length = int(pattern[2:]) if pattern not in (DENSE, "2:inf") else None
    if precision in FLOATS:
        if pattern == DENSE:
            yield TorchLinear(FLOATS[precision])
        elif device.type == "cuda":
            yield TorchSparse(FLOATS[precision], shape[1], length, device)
        return
    spec = SlideSpec(*shape, length, CODES[precision], DENSE if pattern == DENSE else "slide")
    if device.type == "cuda":
        yield from _on_gpu(spec, level, device, host)
    elif pattern != DENSE:
        yield BackendWay(shared(SlideReference, spec, device))
    elif precision == "int8":
        yield CpuDense()


def _on_gpu(spec: SlideSpec, level: str, device: torch.device, host: Host) -> Iterator[Way]:
    dense = spec.layout == DENSE
    for kind in backends_for(SlideSpec, host).values():
        fits = issubclass(kind, DenseCodes) == dense and kind is not SlideReference
        if fits and not kind.refusal(spec, device):
            yield BackendWay(shared(kind, spec, device))
    if level != KERNEL and not dense:
        ways = candidates(spec, device, host)
        found = judge(spec, ways, table_of(key_of(device, host.name, host.version)), Settings(), host)
        yield BackendWay(named(found.route.text, spec, device), AUTO) if found else Untuned()
