"""The sparse product alone, by cuSPARSELt with the chosen algorithm, for each dtype of the sums.

python -m slideconvert.kernels.sparse_gemm.bench_sparse_gemm --models Qwen2.5-7B
"""

from __future__ import annotations

import time

import torch

from ..bench_common import CODES, MODELS, arguments, copies, device_microseconds, header, random_codes, save, table
from ..windows import slid_columns, slide
from .kernel import prepare, sparse_gemm

SUMS = {"int8": (torch.int32, torch.bfloat16), "fp8": (torch.bfloat16, torch.float32)}


def main() -> None:
    options = arguments(
        __doc__, models=["Qwen2.5-7B"], tokens=[64, 1024, 4096, 16384], lengths=[4, 6, 8, 10], codes=["int8", "fp8"]
    )
    print(header())
    rows, lines = [], []
    for model in options.models:
        for layer, (n, k) in MODELS[model].items():
            for name in options.codes:
                for length in options.lengths:
                    prepared = prepare(slide(random_codes(n, k, length, CODES[name]), length))
                    for tokens in options.tokens:
                        codes = random_codes(tokens, slid_columns(k, length), None, CODES[name])
                        turns = [prepared.clone() for _ in range(copies(prepared.numel()) if tokens <= 256 else 1)]
                        for sums in SUMS[name]:
                            started = time.perf_counter()
                            sparse_gemm(codes, prepared, n, sums)
                            torch.cuda.synchronize()
                            planning = time.perf_counter() - started
                            taken = device_microseconds(lambda turn: sparse_gemm(codes, turn, n, sums), turns)
                            kind = str(sums).removeprefix("torch.")
                            rows.append(
                                {
                                    "model": model, "layer": layer, "codes": name, "length": length, "tokens": tokens,
                                    "sums": kind, "microseconds": taken, "planning_seconds": planning,
                                }
                            )  # fmt: skip
                            size = [model, layer, name, f"2:{length}", tokens, kind]
                            lines.append([*size, f"{taken:.1f}", f"{planning:.2f}"])
    print(table(["model", "layer", "codes", "pattern", "M", "sums", "us", "s to plan"], lines))
    save(options.out, rows)


if __name__ == "__main__":
    main()
