"""dequant against the bandwidth of a copy of 1 GiB.

python -m slideconvert.kernels.dequant.bench_dequant
"""

from __future__ import annotations

import torch

from ..bench_common import bandwidth_bench, copies, device_microseconds, save, table
from .kernel import dequant

SUMS = {"int32": torch.int32, "bf16": torch.bfloat16}


def main() -> None:
    options, ceiling = bandwidth_bench(
        __doc__, tokens=[64, 1024, 16384], columns=[2048, 4608, 16384, 37888], sums=["int32", "bf16"]
    )
    rows, lines = [], []
    for tokens in options.tokens:
        for columns in options.columns:
            for name in options.sums:
                moved = tokens * columns * (SUMS[name].itemsize + 2)
                shape, kind = (tokens, columns), SUMS[name]
                sums = [torch.randint(-999, 999, shape, device="cuda").to(kind) for _ in range(copies(moved))]
                scale, weight_scale = torch.rand(tokens, 1, device="cuda"), torch.rand(columns, device="cuda")
                taken = device_microseconds(lambda s: dequant(s, scale, weight_scale, None, torch.bfloat16), sums)
                rows.append({"tokens": tokens, "columns": columns, "sums": name, "microseconds": taken})
                speed = moved / taken / 1e6
                lines.append([tokens, columns, name, f"{taken:.1f}", f"{speed:.2f}", f"{speed / ceiling:.0%}"])
    print(table(["M", "N", "sums", "us", "TB/s", "of a copy"], lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
