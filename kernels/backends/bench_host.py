"""How long the host is busy with one eager call: of a SlideSparseLinear beside torch's own bfloat16 nn.Linear, and of
the operators that servers call in steps without a CUDA graph, beside stock vLLM's where vLLM is installed.

python -m slideconvert.kernels.backends.bench_host
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..bench_common import CODES, MODELS, arguments, header, host_microseconds, random_codes, table
from ..bench_stock import stock_linear
from ..linear import SlideSparseLinear
from ..producers.reference import SILU, SUM, Producer
from ..slide_spec import SlideSpec, SlideWeight
from .base import LINEAR, Dtypes
from .choose import named
from .produced import PRODUCED

SHAPES = ((512, 512), (3072, 2048), (4608, 3584))
X, SERVED = torch.bfloat16, 1024
BEFORE = {"qkv": Producer(SUM, 1e-6), "o": None, "gate_up": Producer(SUM, 1e-6), "down": Producer(SILU)}
"""What is fused with the linears of a layer."""
MEASUREMENTS, CALLS = 3, 10
"""So few calls in a row that the GPU's queue is not full."""


def main() -> None:
    options = arguments(__doc__, tokens=[16], backends=["cusparselt", "dense"], models=["Qwen2.5-7B"])
    print(header())
    lines = []
    with torch.inference_mode():
        for rows, columns in SHAPES:
            for tokens in options.tokens:
                x = torch.randn(1, tokens, columns, dtype=X, device="cuda")
                for name, dtype in CODES.items():
                    spec = SlideSpec(rows, columns, 8, dtype, "dense")
                    scale = torch.ones(rows, 1, device="cuda")
                    given = {"weight": random_codes(rows, columns, 8, dtype), "weight_scale": scale}
                    for backend in options.backends:
                        linear = SlideSparseLinear.of(spec, given, None, backend=backend)
                        lines.append([f"{rows} x {columns}", tokens, name, backend, _measured(linear, x)])
                plain = torch.nn.Linear(columns, rows, bias=False, dtype=X, device="cuda")
                lines.append([f"{rows} x {columns}", tokens, "bf16", "nn.Linear", _measured(plain, x)])
        print(table(["N x K", "M", "codes", "backend", "us"], lines))
        for model in options.models:
            print(f"\n{model}, INT8 2:4, {SERVED} tokens, us of an operator\n")
            served = [[name, *_operators(name, *shape)] for name, shape in MODELS[model].items()]
            print(table(["linear", "many_sparse", "with what is before it", "stock vLLM's two"], served))


def _operators(name: str, rows: int, columns: int) -> list[str]:
    device = torch.device("cuda", torch.cuda.current_device())
    spec = SlideSpec(rows, columns, 4, torch.int8, "dense")
    codes = random_codes(rows, columns, 4, torch.int8)
    backend = named("many_sparse", spec, device)
    prepared = list(backend.prepare(SlideWeight(spec, torch.ones(rows, 1, device=device), dense=codes)))
    backend.complete(prepared, Dtypes(X))
    x = torch.randn(SERVED, columns, dtype=X, device=device)
    found = [_measured(lambda x: LINEAR(x, prepared, None, spec.text, backend.name), x)]
    producer, norm = BEFORE[name], torch.ones(columns, dtype=X, device=device)
    if producer is None:
        found.append("–")
    else:
        other, weight = torch.randn_like(x), None if producer.eps is None else norm
        readers = f"{backend.name}\t{len(prepared)}\t{spec.text}"
        found.append(_measured(lambda x: PRODUCED(x, other, weight, producer.text, prepared, [None], readers), x))
    stock = stock_linear(rows, torch.int8)
    return [*found, "–" if stock is None else _measured(lambda x: stock(x, codes), x)]


def _measured(call: Callable[[torch.Tensor], Any], x: torch.Tensor) -> str:
    return ", ".join(f"{host_microseconds(lambda: call(x), CALLS):.1f}" for _ in range(MEASUREMENTS))


if __name__ == "__main__":
    main()
