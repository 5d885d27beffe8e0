"""The dense INT8 product with fused scales against torch._int_mm and dequant.

python -m slideconvert.kernels.dense_gemm.bench_dense_gemm --models Qwen2.5-7B
"""

from __future__ import annotations

import torch

from ..bench_common import MODELS, arguments, copies, device_microseconds, header, random_codes, save, table
from ..dequant.kernel import dequant
from .kernel import dense_gemm


def main() -> None:
    options = arguments(__doc__, models=["Qwen2.5-7B"], tokens=[64, 1024, 4096, 16384])
    print(header())
    rows, lines = [], []
    for model in options.models:
        for layer, (n, k) in MODELS[model].items():
            weights = [random_codes(n, k, None, torch.int8) for _ in range(copies(n * k))]
            by_channel = torch.rand(n, device="cuda")
            for tokens in options.tokens:
                codes, scale = random_codes(tokens, k, None, torch.int8), torch.rand(tokens, 1, device="cuda")
                turns = weights if tokens <= 256 else weights[:1]

                def fused(weight: torch.Tensor) -> torch.Tensor:
                    return dense_gemm(codes, weight, scale, by_channel, None, torch.bfloat16)

                def stock(weight: torch.Tensor) -> torch.Tensor:
                    return dequant(torch._int_mm(codes, weight.T), scale, by_channel, None, torch.bfloat16)

                assert torch.equal(fused(weights[0]), stock(weights[0]))
                taken = [device_microseconds(way, turns) for way in (fused, stock)]
                rows.append({"model": model, "layer": layer, "tokens": tokens, "fused": taken[0], "int_mm": taken[1]})
                lines.append([model, layer, tokens, f"{taken[0]:.1f}", f"{taken[1]:.1f}", f"{taken[1] / taken[0]:.2f}"])
    print(table(["model", "layer", "M", "fused, us", "_int_mm + dequant, us", "ratio"], lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
