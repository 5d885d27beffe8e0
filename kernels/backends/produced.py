"""Linears that read one activation, together with the producer before them: quantized once, each reads the codes.

torch.compile takes a producer and its linears as one operator: what they read depends on the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..operand import Operand
from ..producers import reference
from ..producers.reference import SUM, Producer
from ..specs import parse_spec
from .base import LIBRARY, NAMESPACE, Backend, Prepared, by_text
from .cuda import missing_triton
from .rule import BUCKETS

Outputs = tuple[list[Tensor], Tensor | None]
Quantized = tuple[Tensor, Tensor, Tensor | None]
"""Codes as they lie in an operand, scale, and the sum."""


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
    if not torch.compiler.is_compiling():
        return _run(producer, x, other, weight, readers)
    prepared = [tensor for reader in readers for tensor in reader.prepared]
    lines = [f"{reader.backend.name}\t{len(reader.prepared)}\t{reader.backend.text}" for reader in readers]
    outs: list[Tensor] = PRODUCED(
        x, other, weight, producer.text, prepared, [reader.bias for reader in readers], "\n".join(lines)
    )
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


def _run(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, readers: Sequence[Reader]
) -> Outputs:
    if x.is_cuda and torch._C._cuda_getDevice() != x.get_device():
        with torch.cuda.device(x.device):  # kernels are started on the current device
            return _run(producer, x, other, weight, readers)
    if x.dim() != 2:
        flat = x.reshape(-1, x.shape[-1])
        outs, total = _run(producer, flat, None if other is None else other.reshape(flat.shape), weight, readers)
        return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs], None if total is None else total.view(x.shape)
    produce, values = _functions(x)
    wanted = [reader.backend.operand(x.shape[0]) for reader in readers]
    made: dict[Operand, tuple[Tensor, Tensor]] = {}
    plain = total = None
    outs = []
    for reader, one in zip(readers, wanted, strict=True):
        if one is None:
            if plain is None:
                plain, total = values(producer, x, other, weight)
            out = reader.backend.run(plain, reader.prepared, reader.bias)
        else:
            operand = one[0]
            if operand not in made:
                rows = max(count for kind, count in filter(None, wanted) if kind == operand)
                codes, scale, total = produce(producer, x, other, weight, operand, rows)
                made[operand] = codes, scale
            out = reader.backend.run_codes(*made[operand], reader.prepared, reader.bias, x.dtype)
        outs.append(out)
    return outs, total


def _functions(x: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`produce` and `values`: of Triton and CUDA on a GPU, else of the reference, as without Triton, where the linears
    run on theirs too."""
    if not x.is_cuda or not _triton():
        return reference.produce, reference.values
    return produce, _makers()[2]


def produce(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, operand: Operand, rows: int
) -> Quantized:
    """The reference's `produce` on a CUDA device, by the kernel that writes codes as they lie in the operand."""
    interleaved, in_rows, _ = _makers()
    if operand.interleaved:
        return interleaved(producer, x, other, weight, operand)
    return in_rows(producer, x, other, weight, operand, rows)


@cache
def _makers() -> tuple[Callable[..., Quantized], Callable[..., Quantized], Callable[..., Any]]:
    """What makes interleaved codes, codes in rows, and values. Imported once and not in every call; Triton comes with
    them."""
    from ..few_tokens import produce as few
    from ..producers import kernel, values

    return few.produce, kernel.produce, values.values


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
    made, backends = _named(producer, readers, x.device)
    found = [Reader(backend, prepared[part], bias) for (backend, part), bias in zip(backends, biases, strict=True)]
    outs, total = _run(made, x, other, weight, found)
    return outs if total is None else [*outs, total]


@cache
def _named(producer: str, readers: str, device: torch.device) -> tuple[Producer, list[tuple[Backend, slice]]]:
    """The producer, and of every reader its backend and which of the prepared tensors are its own."""
    found, first = [], 0
    for line in readers.split("\n"):
        name, count, spec = line.split("\t")
        found.append((by_text(name, spec, device), slice(first, first + int(count))))
        first += int(count)
    return Producer.parse(producer), found


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
