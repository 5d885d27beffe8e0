"""lift_quant against the bandwidth of a copy of 1 GiB, and of a copy of as many bytes as lift_quant moves.

python -m slideconvert.kernels.lift_quant.bench_lift_quant
"""

from __future__ import annotations

import torch

from ..bench_common import CODES, bandwidth_bench, copies, copy_terabytes_per_second, device_microseconds, save, table
from ..launch import stream_of
from ..windows import slid_columns
from .kernel import LiftQuant, lift_quant
from .reference import lift_quant as reference


def measure(tokens: int, columns: int, length: int | None, dtype: torch.dtype) -> float:
    """Microseconds of device time, with rotating inputs and outputs that exceed the cache."""
    x = torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda")
    expected = reference(x[:64], length, dtype)[0].view(torch.int8)
    assert torch.equal(lift_quant(x[:64], length, dtype)[0].view(torch.int8), expected)
    op = LiftQuant(columns, length, dtype, x)
    scale = torch.empty(tokens, dtype=torch.float32, device="cuda")
    turns = [
        (x.clone(), torch.empty(tokens, op.slid, dtype=dtype, device="cuda")) for _ in range(copies(2 * x.numel()))
    ]

    def call(turn: tuple[torch.Tensor, torch.Tensor]) -> None:
        source, codes = turn
        stream = stream_of(scale.device)
        op.start(source.data_ptr(), codes.data_ptr(), scale.data_ptr(), tokens, tokens, stream)

    return device_microseconds(call, turns)


def main() -> None:
    options, ceiling = bandwidth_bench(
        __doc__, tokens=[1024, 4096, 16384], columns=[2048, 3584, 8192, 18944], codes=["int8", "fp8"]
    )
    rows = []
    for tokens in options.tokens:
        for columns in options.columns:
            for length in (4, 6, 8, 10, None):
                moved = tokens * (2 * columns + slid_columns(columns, length) + 4)
                same_size = copy_terabytes_per_second(moved // 2 // 64 * 64)
                for name in options.codes:
                    taken = measure(tokens, columns, length, CODES[name])
                    rows.append(
                        {
                            "tokens": tokens, "columns": columns, "codes": name, "length": length, "bytes": moved,
                            "microseconds": taken, "same_size": same_size,
                        }
                    )  # fmt: skip
    lines = []
    for row in rows:
        speed = row["bytes"] / row["microseconds"] / 1e6
        shares = f"{speed / ceiling:.0%}", f"{speed / row['same_size']:.0%}"
        pattern = f"2:{row['length'] or 'inf'}"
        size = [row["tokens"], row["columns"], row["codes"], pattern]
        lines.append([*size, f"{row['microseconds']:.1f}", f"{speed:.2f}", *shares])
    print(table(["M", "K", "codes", "pattern", "us", "TB/s", "of a 1 GiB copy", "of a copy its size"], lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
