"""Products of a few tokens with grouped weights against cuBLAS, our dense W4, and 2:4.

python -m slideconvert.kernels.group_gemm.bench_group_gemm --models Llama-2-7B --tokens 1 4 16

Of the bandwidth limit: what the checkpoint stores of the weight, read at the speed of a copy of 1 GiB, over the time.
2:4 is bfloat16 through torch's to_sparse_semi_structured (cuSPARSELt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..bench_common import MODELS, bandwidth_bench, copies, device_microseconds, host_microseconds, save, table
from ..group_spec import GroupSpec
from ..groups import DenseGroups, Groups, Weight, decode
from .kernel import GroupGemm
from .reference import group_gemm as reference

DEVICE = torch.device("cuda", 0)


def random_weight(
    keep: Tensor, columns: int, size: int, bits: int, activation_bits: int = 16, *, dense: bool = False
) -> tuple[GroupSpec, Weight]:
    """Random codes, scales and zero points of the groups in keep [N, K/G]; of all groups for the dense layout."""
    rows, n = len(keep), keep.numel() if dense else int(keep.sum())
    spec = GroupSpec(rows, columns, size, bits, n, False, activation_bits, "dense" if dense else "gqs")
    drawn: dict[str, Tensor] = {}
    for name, (shape, dtype) in spec.tensors().items():
        if dtype == torch.bfloat16:
            drawn[name] = torch.randn(shape, dtype=dtype, device=DEVICE)
        elif dtype in (torch.uint8, torch.int32):
            lowest, highest = (0, 256) if dtype == torch.uint8 else (-(2**31), 2**31)
            drawn[name] = torch.randint(lowest, highest, shape, dtype=dtype, device=DEVICE)
    if dense:
        drawn["weight_shape"] = torch.tensor([rows, columns], device=DEVICE)
        return spec, DenseGroups.of(drawn)
    drawn["weight_row_index"] = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0)).int()
    drawn["weight_groups"] = (keep.flatten().nonzero().squeeze(1) % spec.across).short()
    if bits == 4 and n % 2:
        drawn["weight_zero_point"][-1] &= 15
    return spec, Groups.of(drawn)


class Case:
    """One weight, compared with the reference, and enough copies of it to exceed the cache."""

    def __init__(self, spec: GroupSpec, weight: Weight) -> None:
        self.spec = spec
        self.op = GroupGemm(spec, DEVICE)
        prepared = self.op.prepare(weight)
        self.check(weight, prepared)
        turns = range(copies(prepared[0].numel()) - 1)
        self.prepared = [prepared, *(tuple(one.clone() for one in prepared) for _ in turns)]
        torch.cuda.synchronize()

    def check(self, weight: Weight, prepared: tuple[Tensor, ...]) -> None:
        """Compare with the reference; the error may be that of rounding the output to bfloat16."""
        magnitudes = decode(weight, self.spec)[0].float().abs().mean() + 1e-6
        for tokens in (1, 16):
            x = torch.randn(tokens, self.spec.columns, device=DEVICE).bfloat16()
            expected = reference(x, weight, None, self.spec).float()
            error = (self.op(x, prepared, None).float() - expected).norm() / (expected.norm() + magnitudes)
            assert error < 2.0**-8, (str(self.spec), tokens, float(error))

    def microseconds(self, tokens: int, dtype: torch.dtype = torch.bfloat16) -> float:
        x = torch.randn(tokens, self.spec.columns, device=DEVICE).to(dtype)
        return device_microseconds(lambda prepared: self.op(x, prepared, None), self.prepared)

    def host(self) -> float:
        """Microseconds of host time per call."""
        x = torch.randn(1, self.spec.columns, device=DEVICE).bfloat16()
        return host_microseconds(lambda: self.op(x, self.prepared[0], None))


def stock(rows: int, columns: int, tokens: Sequence[int]) -> dict[str, dict[int, float | None]]:
    """Microseconds of torch's products, by name and number of tokens."""
    out: dict[str, dict[int, float | None]] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        weight = torch.randn(rows, columns, dtype=dtype, device=DEVICE)
        out[name] = {m: _linear([weight.clone() for _ in range(copies(weight.nbytes))], m, dtype) for m in tokens}
    weight = torch.randn(rows, columns, dtype=torch.bfloat16, device=DEVICE)
    weight.view(-1, 4)[:, 2:] = 0
    try:
        sparse = [torch.sparse.to_sparse_semi_structured(weight) for _ in range(copies(weight.nbytes))]
        out["2:4"] = {m: _linear(sparse, m, torch.bfloat16) for m in tokens}
    except (RuntimeError, NotImplementedError) as error:
        print("2:4 does not run:", str(error).splitlines()[0])
        out["2:4"] = dict.fromkeys(tokens)
    return out


def _linear(weights: Sequence[Tensor], tokens: int, dtype: torch.dtype) -> float:
    x = torch.randn(tokens, weights[0].shape[1], dtype=dtype, device=DEVICE)
    return device_microseconds(lambda weight: torch.nn.functional.linear(x, weight), weights)


def main() -> None:
    options, ceiling = bandwidth_bench(
        __doc__, models=["Llama-2-7B", "Qwen2.5-7B"], tokens=[1, 4, 16, 64], sparsity=[0, 20, 30, 40, 50, 60, 70, 80]
    )
    found: list[dict[str, Any]] = []
    layers: dict[str, tuple[int, int]] = {}
    for model in options.models:
        layers |= {f"{model} {layer}": shape for layer, shape in MODELS[model].items()}
    lines = []
    for name, (rows, columns) in layers.items():
        times = stock(rows, columns, options.tokens)
        shape = (rows, columns // 16)
        ways: dict[str, Callable[[], tuple[GroupSpec, Weight]]] = {
            "dense W4": lambda: random_weight(torch.ones(shape, device=DEVICE), columns, 16, 4, dense=True)
        }
        for share in options.sparsity:
            keep = torch.rand(shape, device=DEVICE) >= share / 100
            ways[f"S{share}"] = lambda keep=keep: random_weight(keep, columns, 16, 4)  # type: ignore[misc]
        half = torch.rand(shape, device=DEVICE) >= 0.5
        ways["W8S50"] = lambda: random_weight(half, columns, 16, 8)
        ways["W4A8S50"] = lambda: random_weight(half, columns, 16, 4, 8)
        stored: dict[str, int] = {}
        for way, make in ways.items():
            case = Case(*make())
            stored[way] = case.spec.stored_bytes()
            times[way] = {m: case.microseconds(m) for m in options.tokens}
            if way == "S50":
                found.append({"layer": name, "way": "host", "microseconds": case.host()})
        for m in options.tokens:
            taken = {way: by_tokens[m] for way, by_tokens in times.items()}
            limit = {way: size / ceiling / 1e6 for way, size in stored.items()}
            found += [
                {"layer": name, "tokens": m, "way": way, "microseconds": one, "limit": limit.get(way)}
                for way, one in taken.items()
            ]
            cells = [f"{one:.1f}" if one else "-" for one in taken.values()]
            middle = taken.get("S50")
            if middle and taken["bf16"] and taken["dense W4"]:
                cells += [f"{limit['S50'] / middle:.0%}", f"{taken['bf16'] / middle:.2f}"]
                cells.append(f"{taken['dense W4'] / middle:.2f}")
            lines.append([name, m, *cells])
        print(*lines[-len(options.tokens) :], sep="\n", flush=True)
    print(table(["us", "M", *times, "S50 of limit", "bf16 / S50", "dense W4 / S50"], lines))
    save(options.out, found)


if __name__ == "__main__":
    main()
