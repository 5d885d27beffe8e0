"""How long the host is busy with one eager call of a SlideSparseLinear, beside torch's own bfloat16 nn.Linear.

python -m slideconvert.kernels.backends.bench_host
"""

from __future__ import annotations

import torch

from ..bench_common import CODES, arguments, header, host_microseconds, random_codes, table
from ..linear import SlideSparseLinear
from ..slide_spec import SlideSpec

SHAPES = ((512, 512), (3072, 2048), (4608, 3584))
MEASUREMENTS = 3


def main() -> None:
    options = arguments(__doc__, tokens=[16], backends=["cusparselt", "dense"])
    print(header())
    lines = []
    with torch.inference_mode():
        for rows, columns in SHAPES:
            for tokens in options.tokens:
                x = torch.randn(1, tokens, columns, dtype=torch.bfloat16, device="cuda")
                for name, dtype in CODES.items():
                    spec = SlideSpec(rows, columns, 8, dtype, "dense")
                    scale = torch.ones(rows, 1, device="cuda")
                    named = {"weight": random_codes(rows, columns, 8, dtype), "weight_scale": scale}
                    for backend in options.backends:
                        linear = SlideSparseLinear.of(spec, named, None, backend=backend)
                        lines.append([f"{rows} x {columns}", tokens, name, backend, _measured(linear, x)])
                plain = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16, device="cuda")
                lines.append([f"{rows} x {columns}", tokens, "bf16", "nn.Linear", _measured(plain, x)])
    print(table(["N x K", "M", "codes", "backend", "us"], lines))


def _measured(linear: torch.nn.Module, x: torch.Tensor) -> str:
    return ", ".join(f"{host_microseconds(lambda: linear(x)):.1f}" for _ in range(MEASUREMENTS))


if __name__ == "__main__":
    main()
