"""A decoder layer without its attention: four linears and what lies before them. Stock vLLM (norm and gate by its own
operators, or compiled as it compiles them; its quantization; its CUTLASS product) beside fused producers and the
product of many tokens. The input of o has no producer: that linear quantizes on its own.

python -m slideconvert.kernels.producers.bench_layer --models Qwen2.5-7B --tokens 1024 16384 --out layer.json
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic
from torch.nn.functional import silu

from ..backends.base import Dtypes
from ..backends.many_tokens import ManySparse
from ..bench_common import CODES, MODELS, arguments, header, interleaved, random_codes, save, table
from ..bench_stock import stock_product, stock_quantize
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from . import reference
from .reference import SAME, SILU, SUM, Producer

X, EPS, CHECKED = torch.bfloat16, 1e-6, 64
ADD_NORM, GATE = Producer(SUM, EPS), Producer(SILU)
Given = tuple[Tensor, Tensor, Tensor]
"""What a layer reads, [M, hidden] each: the output of the layer before, the residual, and what attention gives."""
Outs = tuple[Tensor, Tensor, Tensor]
"""Of qkv, gate_up and down, each [M, N]; that of o is an input of gate_up."""


class Ours:
    """One producer before every linear but o, in the form that its product reads."""

    def __init__(self, weights: dict[str, SlideWeight], norm: Tensor) -> None:
        from .kernel import produce

        self.produce, self.norm = produce, norm
        self.ways = {name: ManySparse(weight.spec, norm.device) for name, weight in weights.items()}
        self.prepared = {name: self.ways[name].prepare(weight) for name, weight in weights.items()}
        for name, way in self.ways.items():
            way.complete(self.prepared[name], Dtypes(X))

    def produced(self, name: str, producer: Producer, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor | None]:
        """The linear's output, and the sum."""
        wanted = self.ways[name].operand(len(x))
        assert wanted is not None
        weight = None if producer.eps is None else self.norm
        codes, scale, total = self.produce(producer, x, other, weight, *wanted)
        return self.ways[name].run_codes(codes, scale, self.prepared[name], None, X), total

    def __call__(self, given: Given) -> Outs:
        x, residual, attended = given
        qkv, total = self.produced("qkv", ADD_NORM, x, residual)
        assert total is not None
        o = self.ways["o"].run(attended, self.prepared["o"], None)
        both, _ = self.produced("gate_up", ADD_NORM, o, total)
        return qkv, both, self.produced("down", GATE, *both.chunk(2, -1))[0]


class Stock:
    """compiled: whether torch.compile makes the norm, the gate and the quantization to FP8, as it does in vLLM by
    default; else they are vLLM's operators, which norm in place: sums then grow from call to call."""

    def __init__(self, weights: dict[str, SlideWeight], norm: Tensor, *, compiled: bool) -> None:
        from vllm import _custom_ops as ops

        self.ops: Any = ops
        self.norm, self.compiled = norm, compiled
        self.dtype = weights["o"].spec.dtype
        self.weights = {name: (weight.dense, weight.scale) for name, weight in weights.items()}

    def product(self, name: str, codes: Tensor, scale: Tensor) -> Tensor:
        return stock_product(codes, scale, *self.weights[name], X)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return stock_quantize(x, self.dtype)

    def add_norm(self, x: Tensor, residual: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Codes and scale, and the sum."""
        if not self.compiled:
            self.ops.fused_add_rms_norm(x, residual, self.norm, EPS)
            return self.quantized(x), residual
        if self.dtype != torch.int8:
            found: tuple[tuple[Tensor, Tensor], Tensor] = run_compiled(add_norm_fp8, x, residual, weights=(self.norm,))
            return found
        normed, total = run_compiled(add_norm, x, residual, weights=(self.norm,))
        return self.quantized(normed), total

    def gated(self, both: Tensor) -> tuple[Tensor, Tensor]:
        if not self.compiled:
            out = both.new_empty(len(both), both.shape[1] // 2)
            torch.ops._C.silu_and_mul(out, both)
            return self.quantized(out)
        if self.dtype != torch.int8:
            pair: tuple[Tensor, Tensor] = run_compiled(gate_fp8, both)
            return pair
        return self.quantized(run_compiled(gate, both))

    def __call__(self, given: Given) -> Outs:
        x, residual, attended = given
        quantized, total = self.add_norm(x, residual)
        qkv = self.product("qkv", *quantized)
        o = self.product("o", *self.quantized(attended))
        both = self.product("gate_up", *self.add_norm(o, total)[0])
        return qkv, both, self.product("down", *self.gated(both))


def add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As vLLM normalizes without its operators."""
    total = x.float() + residual.float()
    normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS)
    return normed.to(X) * weight, total.to(X)


def gate(both: Tensor) -> Tensor:
    first, second = both.chunk(2, -1)
    return silu(first) * second


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """As vLLM quantizes without its operators."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 448).clamp(min=1 / (448 * 512))
    return (x.float() * scale.reciprocal()).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def add_norm_fp8(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    normed, total = add_norm(x, residual, weight)
    return quantize_fp8(normed), total


def gate_fp8(both: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_fp8(gate(both))


def run_compiled(function: Callable[..., Any], *inputs: Tensor, weights: tuple[Tensor, ...] = ()) -> Any:
    """Compiled for any number of tokens, as in vLLM."""
    for one in inputs:
        maybe_mark_dynamic(one, 0)
    return compiled(function)(*inputs, *weights)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def compile_all(models: list[str], lengths: list[int], codes: list[str]) -> None:
    """Compile what layers run, on all cores: one after the other, that takes longer than all measurements."""
    from .kernel import produce_for

    device = torch.device("cuda", torch.cuda.current_device())

    def compile_linear(model: str, name: str, length: int, dtype: torch.dtype) -> None:
        torch.cuda.set_device(device)
        n, k = MODELS[model][name]
        way = ManySparse(SlideSpec(n, k, length, dtype), device)
        wanted = way.operand(1)
        assert wanted is not None
        if name == "o":
            way.complete((), Dtypes(X))  # which is the same for all linears of a pattern
        else:
            producer, strides = (GATE, (2 * k, 2 * k)) if name == "down" else (ADD_NORM, (k, k))
            produce_for(producer, wanted[0], X, strides, device)

    jobs = [
        (model, name, length, CODES[word])
        for model in models for name in ("o", "qkv", "down") for length in lengths for word in codes
        if name != "o" or model == models[0]
    ]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: compile_linear(*job), jobs))


def layer_weights(model: str, length: int | None, dtype: torch.dtype) -> dict[str, SlideWeight]:
    """Random codes, and scales that keep outputs as large as inputs."""
    found = {}
    for name, (n, k) in MODELS[model].items():
        codes = random_codes(n, k, length, dtype)
        scale = (1 / (codes[:16].float().std() * k**0.5)).expand(n, 1).contiguous()
        found[name] = SlideWeight(SlideSpec(n, k, length, dtype), scale, dense=codes)
    return found


def given_for(tokens: int, hidden: int) -> Given:
    x, residual, attended = (torch.randn(tokens, hidden, dtype=X, device="cuda") for _ in range(3))
    return x, residual, attended


def check(layer: Ours | Stock, weights: dict[str, SlideWeight], norm: Tensor, given: Given) -> None:
    """The outputs of the last tokens against the reference, whose products are those of float64."""

    def product(name: str, producer: Producer, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = weights[name]
        operand = Operand(weight.spec.columns, weight.spec.dtype)
        codes, scale, total = reference.produce(producer, x, other, norm, operand, len(x))
        sums = codes.float().double() @ weight.dense.float().double().t()
        return (sums * scale * weight.scale.t()).to(X), total

    found = layer((given[0].clone(), given[1].clone(), given[2]))
    x, residual, attended = (part[-CHECKED:] for part in given)
    qkv, total = product("qkv", ADD_NORM, x, residual)
    both, _ = product("gate_up", ADD_NORM, product("o", Producer(SAME), attended, None)[0], total)
    down, _ = product("down", GATE, *both.chunk(2, -1))
    for name, out, expected in zip(("qkv", "gate_up", "down"), found, (qkv, both, down), strict=True):
        wanted = expected.float()
        errors = [(out[-CHECKED:].float() - wanted).norm(dim=dim) / wanted.norm(dim=dim) for dim in (0, 1)]
        error = float(torch.cat(errors).max())
        # vLLM does not round a sum before its norm, which changes some codes by one, most of all those of FP8.
        assert error < 2**-3, f"{type(layer).__name__}, {weights[name].spec}: a row or column is off by {error:.1%}"


def layers(model: str, dtype: torch.dtype, lengths: list[int], tokens: list[int]) -> dict[str, Callable[[Given], Outs]]:
    """The ways to run a layer, each checked at every number of tokens."""
    hidden = MODELS[model]["qkv"][1]
    torch.compiler.reset()  # sizes of another model would become variables
    norm = 1 + torch.randn(hidden, device="cuda").to(X) / 4
    found: dict[str, Any] = {}
    for length in (None, *lengths):
        weights = layer_weights(model, length, dtype)
        if length is None:
            made: dict[str, Any] = {
                f"stock, {word}": Stock(weights, norm, compiled=word == "compiled")
                for word in ("operators", "compiled")
            }
        else:
            made = {f"2:{length}": Ours(weights, norm)}
        for count in tokens:
            for layer in made.values():
                check(layer, weights, norm, given_for(count, hidden))
        found |= made
    return found


def main() -> None:
    options = arguments(
        __doc__,
        models=["Qwen2.5-7B", "Qwen2.5-14B"],
        tokens=[1024, 4096, 16384],
        lengths=[4, 6, 8, 10],
        codes=["int8", "fp8"],
    )
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed here: there is nothing to compare with")
        return
    print(header())
    compile_all(options.models, options.lengths, options.codes)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        lines = []
        for name in options.codes:
            ways = layers(model, CODES[name], options.lengths, options.tokens)
            for tokens in options.tokens:
                given = given_for(tokens, MODELS[model]["qkv"][1])
                found = interleaved({way: partial(layer, given) for way, layer in ways.items()})
                taken = found.microseconds
                stock = min((way for way in ways if way.startswith("stock")), key=taken.__getitem__)
                rows.append({"model": model, "codes": name, "tokens": tokens, "stock": stock, **vars(found)})
                for way, one in taken.items():
                    lines.append([model, name, tokens, way, f"{one:.1f}", f"{taken[stock] / one:.3f}"])
        print(table(["model", "codes", "M", "way", "us", "of stock"], lines), flush=True)
        save(options.out, rows)


if __name__ == "__main__":
    main()
