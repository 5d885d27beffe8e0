"""quantize against the bandwidth of a copy of 1 GiB.

python -m slideconvert.kernels.quantize.bench_quantize
"""

from __future__ import annotations

import torch

from ..bench_common import CODES, bandwidth_bench, copies, device_microseconds, save, table
from .kernel import quantize
from .reference import quantize as reference


def main() -> None:
    options, ceiling = bandwidth_bench(
        __doc__, tokens=[1024, 4096, 16384], columns=[2048, 3584, 8192, 18944], codes=["int8", "fp8"]
    )
    rows = []
    for tokens in options.tokens:
        for columns in options.columns:
            sets = copies(2 * tokens * columns)
            xs = [torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda") for _ in range(sets)]
            for name in options.codes:
                expected = reference(xs[0][:64], CODES[name])[0].view(torch.int8)
                assert torch.equal(quantize(xs[0][:64], CODES[name])[0].view(torch.int8), expected)
                taken = device_microseconds(lambda x: quantize(x, CODES[name]), xs)
                rows.append({"tokens": tokens, "columns": columns, "codes": name, "microseconds": taken})
    lines = []
    for row in rows:
        speed = row["tokens"] * (3 * row["columns"] + 4) / row["microseconds"] / 1e6
        lines.append(
            [
                row["tokens"],
                row["columns"],
                row["codes"],
                f"{row['microseconds']:.1f}",
                f"{speed:.2f}",
                f"{speed / ceiling:.0%}",
            ]
        )
    print(table(["M", "K", "codes", "us", "TB/s", "of a copy"], lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
