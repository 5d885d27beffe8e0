"""Producers in one pass against the same in several: torch's operations and a kernel that quantizes (as transformers
runs them without fusion), and one kernel for the values with another that quantizes (as vLLM does at best).

python -m slideconvert.kernels.producers.bench_producers
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..bench_common import CODES, MODELS, bandwidth_bench, copies, device_microseconds, save, table
from ..lift_quant.kernel import lift_quant
from ..operand import Operand
from ..quantize.kernel import quantize
from . import kernel, reference
from .reference import RELU2, SAME, SILU, SUM, Producer
from .values import values

NORM, ADD_NORM, GATE, SUB_NORM = Producer(SAME, 1e-6), Producer(SUM, 1e-6), Producer(SILU), Producer(RELU2, 1e-5)
PRODUCERS = {"RMSNorm": NORM, "add, RMSNorm": ADD_NORM, "silu(gate) up": GATE, "relu2(gate) up, RMSNorm": SUB_NORM}
Turn = tuple[Tensor, Tensor | None, Tensor | None]


def producers(model: str) -> dict[str, int]:
    """The producers of a model by name, with their columns."""
    hidden, inner = MODELS[model]["qkv"][1], MODELS[model]["down"][1]
    gate = "relu2(gate) up, RMSNorm" if model == "BitNet-2B" else "silu(gate) up"
    return {"RMSNorm": hidden, "add, RMSNorm": hidden, gate: inner}


def turns(producer: Producer, tokens: int, columns: int) -> list[Turn]:
    """Inputs that together exceed the cache."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    second, weight = producer.element != SAME, random(columns) if producer.eps is not None else None
    count = copies((4 if second else 2) * tokens * columns)
    return [(random(tokens, columns), random(tokens, columns) if second else None, weight) for _ in range(count)]


def quantized(x: Tensor, operand: Operand) -> tuple[Tensor, Tensor]:
    return lift_quant(x, operand.length, operand.dtype) if operand.lifted else quantize(x, operand.dtype)


def measure(producer: Producer, tokens: int, operand: Operand) -> dict[str, float]:
    """Microseconds of device time: in one pass, by torch's operations and by two kernels."""
    given = turns(producer, tokens, operand.columns)
    ways: dict[str, Callable[[Turn], Any]] = {
        "fused": lambda turn: kernel.produce(producer, *turn, operand, tokens),
        "torch": lambda turn: quantized(reference.values(producer, *turn)[0], operand),
        "two kernels": lambda turn: quantized(values(producer, *turn)[0], operand),
    }
    codes, expected = (ways[name](given[0])[0].view(torch.int8) for name in ("fused", "torch"))
    # Of the values, one in 2**12 may be rounded otherwise, and with the largest all codes of its row.
    assert (codes != expected).float().mean() < 2**-5, "codes are not those of the reference"
    return {name: device_microseconds(way, given) for name, way in ways.items()}


def moved(producer: Producer, tokens: int, operand: Operand) -> int:
    """Bytes that one pass reads and writes."""
    numbers = {SAME: 1, SUM: 3}.get(producer.element, 2)
    return tokens * (2 * numbers * operand.columns + operand.width + 4)


def main() -> None:
    options, ceiling = bandwidth_bench(
        __doc__,
        models=["Qwen2.5-7B", "Llama-3.2-1B", "Llama-3.2-3B", "BitNet-2B"],
        tokens=[1, 16, 64, 1024, 4096, 16384],
        codes=["int8", "fp8"],
        patterns=["dense", "4", "6", "8"],
    )
    rows, lines = [], []
    for model in options.models:
        for name, columns in producers(model).items():
            for tokens in options.tokens:
                for codes in options.codes:
                    for pattern in options.patterns:
                        lifted = pattern != "dense"
                        operand = Operand(columns, CODES[codes], lifted, int(pattern) if lifted else None)
                        taken = measure(PRODUCERS[name], tokens, operand)
                        size = {"model": model, "producer": name, "tokens": tokens, "columns": columns, "codes": codes}
                        rows.append({**size, "pattern": pattern, "microseconds": taken})
                        speed = moved(PRODUCERS[name], tokens, operand) / taken["fused"] / 1e6
                        gains = [f"{taken[way] / taken['fused']:.2f}" for way in ("torch", "two kernels")]
                        shown = [f"2:{pattern}" if lifted else pattern, f"{taken['fused']:.1f}", *gains]
                        lines.append([*size.values(), *shown, f"{speed:.2f}", f"{speed / ceiling:.0%}"])
    heads = ["model", "producer", "M", "K", "codes", "pattern", "us", "torch /", "two kernels /", "TB/s", "of a copy"]
    print(table(heads, lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
