"""Linears that read one activation, together with the producer before them: quantized once, each reads the codes.

torch.compile takes a producer and its linears as one operator: what they read depends on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..operand import Operand
from ..producers import reference
from ..producers.reference import SUM, Producer
from ..specs import parse_spec
from .base import LIBRARY, NAMESPACE, Backend, Prepared, by_text
from .cuda import indexed, missing_triton
from .rule import BUCKETS

Outputs = tuple[list[Tensor], Tensor | None]
MOST_PLANS = 4096
"""Numbers of tokens whose plans are remembered."""


@dataclass(frozen=True)
class Reader:
    """A linear that reads what is produced."""

    backend: Backend
    prepared: Prepared
    bias: Tensor | None


def run_produced(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, readers: Sequence[Reader]
) -> Outputs:
    """x, other [..., K], weight [K], of one float dtype -> the output [..., N] of every reader; for the element sum,
    x + other too.

    What the unfused model computes: to the bit where the producer's reference runs, else as producers/kernel.py says.
    ValueError if x is on another device than a reader.
    """
    prepared, biases = [reader.prepared for reader in readers], [reader.bias for reader in readers]
    if not torch.compiler.is_compiling():
        return _fused(producer, tuple(reader.backend for reader in readers))(x, other, weight, prepared, biases)
    lines = [f"{reader.backend.name}\t{len(reader.prepared)}\t{reader.backend.text}" for reader in readers]
    flat = [tensor for tensors in prepared for tensor in tensors]
    outs: list[Tensor] = PRODUCED(x, other, weight, producer.text, flat, biases, "\n".join(lines))
    return outs[: len(readers)], outs[len(readers)] if producer.element == SUM else None


def complete(producer: Producer, columns: int, dtype: torch.dtype, backends: Sequence[Backend]) -> None:
    """Compile what calls of any number of tokens start: seconds for each kernel that nobody has compiled here before.

    columns: K. dtype: of the activations to come. backends: of the linears that read what is produced.
    """
    device, strides = backends[0].device, (columns, columns)
    if device.type != "cuda" or not _triton():
        return
    from ..few_tokens.produce import quantize_for
    from ..producers.kernel import produce_for
    from ..producers.values import values_for

    with torch.cuda.device(device):
        for operand in operands(backends):
            if operand is None:
                values_for(producer, columns, dtype, strides, device)
            elif operand.interleaved:
                quantize_for(producer, operand, dtype, device)
            else:
                produce_for(producer, operand, dtype, strides, device)


def operands(backends: Sequence[Backend]) -> list[Operand | None]:
    """What the backends read, whatever the number of tokens; None if one quantizes on its own."""
    wanted = [backend.operand(tokens) for backend in backends for tokens in (*BUCKETS, 2 * BUCKETS[-1])]
    return list(dict.fromkeys(one and one[0] for one in wanted))


Make = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None, Tensor | None]]
"""x, other, weight -> what readers take: codes and their scale, or values and None; and the sum."""


@dataclass(frozen=True)
class Plan:
    """What a number of tokens starts. readers: of each reader the backend, which of its prepared tensors that reads,
    and which of the makes it takes."""

    makes: tuple[Make, ...]
    readers: tuple[tuple[Backend, slice, int], ...]


class Fused:
    """A producer and the backends that read it. The plan of a number of tokens is made once: without a CUDA graph a
    step waits for the host, where stock vLLM's operators take a few tens of microseconds for a linear."""

    def __init__(self, producer: Producer, backends: Sequence[Backend]) -> None:
        self.producer, self.backends, self.device = producer, backends, indexed(backends[0].device)
        self._plans: dict[int, Plan] = {}

    def __call__(
        self,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor | None,
        prepared: Sequence[Prepared],
        biases: Sequence[Tensor | None],
    ) -> Outputs:
        """`run_produced` on the prepared weight and the bias of every reader."""
        if x.is_cuda and torch._C._cuda_getDevice() != x.get_device():
            with torch.cuda.device(x.device):  # kernels are started on the current device
                return self(x, other, weight, prepared, biases)
        if x.dim() != 2:
            flat, second = x.reshape(-1, x.shape[-1]), None if other is None else other.reshape(-1, x.shape[-1])
            outs, total = self(flat, second, weight, prepared, biases)
            outs = [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]
            return outs, None if total is None else total.view_as(x)
        if x.device != self.device:
            raise ValueError(f"the input of {self.backends[0].spec} is on {x.device}, its weight on {self.device}")
        tokens, dtype = x.shape[0], x.dtype
        plan = self._plans.get(tokens) or self._planned(tokens)
        made = [make(x, other, weight) for make in plan.makes]
        outs = []
        for (backend, part, place), tensors, bias in zip(plan.readers, prepared, biases, strict=True):
            found, scale, _ = made[place]
            if scale is None:
                outs.append(backend.run(found, tensors[part], bias))
            else:
                outs.append(backend.run_codes(found, scale, tensors[part], bias, dtype))
        return outs, made[0][2]

    def _planned(self, tokens: int) -> Plan:
        ways = [backend.way(tokens) for backend in self.backends]
        wanted = [backend.operand(tokens) for backend, _ in ways]
        rows: dict[Operand | None, int] = {}
        for one in wanted:
            operand, count = one or (None, tokens)
            rows[operand] = max(count, rows.get(operand, 0))
        kinds = list(rows)
        readers = [(*way, kinds.index(one and one[0])) for way, one in zip(ways, wanted, strict=True)]
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        found = Plan(tuple(self._make(operand, rows[operand]) for operand in kinds), tuple(readers))
        self._plans[tokens] = found
        return found

    def _make(self, operand: Operand | None, rows: int) -> Make:
        """By the kernel that writes what the readers take; by the reference on a CPU, and without Triton, where the
        linears run on theirs too."""
        producer, device = self.producer, self.device
        if device.type == "cuda" and _triton():
            return kernel_for(producer, operand, rows, device)
        if operand is None:
            return lambda x, other, weight: _apart(reference.values(producer, x, other, weight))
        return lambda x, other, weight: reference.produce(producer, x, other, weight, operand, rows)


def kernel_for(producer: Producer, operand: Operand | None, rows: int, device: torch.device) -> Make:
    """What writes an operand of so many rows, or values where it is None, on a CUDA device, the current one."""
    from ..few_tokens import produce as few
    from ..producers import kernel, values  # Triton comes with them

    if operand is None:
        return lambda x, other, weight: _apart(values.values(producer, x, other, weight))
    if operand.interleaved:
        return lambda x, other, weight: few.produce(producer, x, other, weight, operand)
    producing = kernel.producing_for(producer, operand, device)
    return lambda x, other, weight: producing(x, other, weight, rows)


def _apart(found: tuple[Tensor, Tensor | None]) -> tuple[Tensor, None, Tensor | None]:
    """Values and the sum, as a `Make` gives them."""
    return found[0], None, found[1]


_fused = cache(Fused)


@cache
def _triton() -> bool:
    """Looked for once: it takes longer than a kernel."""
    return not missing_triton()


def _operator(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor | None,
    producer: str,
    prepared: list[Tensor],
    biases: list[Tensor | None],
    readers: str,
) -> list[Tensor]:
    fused, parts = _named(producer, readers, x.device)
    outs, total = fused(x, other, weight, [prepared[part] for part in parts], biases)
    return outs if total is None else [*outs, total]


@cache
def _named(producer: str, readers: str, device: torch.device) -> tuple[Fused, list[slice]]:
    """The producer with its readers, and which of the prepared tensors each of them has."""
    backends, parts, first = [], [], 0
    for line in readers.split("\n"):
        name, count, spec = line.split("\t")
        backends.append(by_text(name, spec, device))
        parts.append(slice(first, first + int(count)))
        first += int(count)
    return Fused(Producer.parse(producer), backends), parts


def _shapes(
    x: Tensor,
    other: Tensor | None,  # noqa: ARG001
    weight: Tensor | None,  # noqa: ARG001
    producer: str,
    prepared: list[Tensor],  # noqa: ARG001
    biases: list[Tensor | None],  # noqa: ARG001
    readers: str,
) -> list[Tensor]:
    specs = [parse_spec(line.split("\t")[2]) for line in readers.split("\n")]
    outs = [x.new_empty((*x.shape[:-1], spec.rows)) for spec in specs]
    return [*outs, x.new_empty(x.shape)] if Producer.parse(producer).element == SUM else outs


LIBRARY.define(
    "produced(Tensor x, Tensor? other, Tensor? weight, str producer, Tensor[] prepared, Tensor?[] biases, "
    "str readers) -> Tensor[]"
)
LIBRARY.impl("produced", _operator, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::produced", _shapes, lib=LIBRARY)
PRODUCED = getattr(torch.ops, NAMESPACE).produced.default
"""A producer and its readers, for torch.compile: `_operator`."""
