"""Small models of vLLM's norms and gates and our linears, compiled by Inductor with and without our pass. A script for
vLLM's own environment, with slideconvert.

    python vllm_fusion_job.py TASK OUT

TASK: a JSON file that names a dtype. OUT: a folder; outcome.json appears in it: by case, the operators of the graph
after the pass, and the largest difference from the eager model without it, relative to its largest output.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import vllm.ir.ops as ops
from torch.nn.functional import gelu, silu
from vllm.compilation.passes.inductor_pass import InductorPass
from vllm.ir.op import enable_torch_wrap
from vllm.model_executor.layers.activation import SiluAndMul

from slideconvert.kernels.backends import base
from slideconvert.kernels.backends.reference import SlideReference
from slideconvert.kernels.backends.routed import Routed
from slideconvert.kernels.backends.rule import Route
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.runtime.vllm_fusion import FusedProducers, install

CPU, EPS, COLUMNS = torch.device("cpu"), 1e-5, 48


class Theirs(InductorPass):
    """A pass that somebody else asked for."""

    def __call__(self, graph):
        pass


class Noted(FusedProducers):
    """The pass, and what is in the graph after it."""

    def __call__(self, graph):
        super().__call__(graph)
        graph.lint()
        self.seen = [str(node.target) for node in graph.nodes if node.op == "call_function"]

    def uuid(self):
        return None  # nothing is cached


def linear(rows: int, dtype: torch.dtype) -> SlideSparseLinear:
    spec = SlideSpec(rows, COLUMNS, 8, torch.int8)
    return SlideSparseLinear.of(spec, spec.random(CPU).named(), torch.randn(rows).to(dtype))


class Itself(SlideReference):
    """Takes no codes."""

    name = "itself"

    def operand(self, tokens):
        return None


def routed_linear(dtype: torch.dtype) -> SlideSparseLinear:
    """Of 64 tokens, but not of 32, it takes no codes."""
    found = linear(16, dtype)
    ways = {"itself": Itself(found.spec, CPU), "reference": found.backend}
    found.backend = Routed(found.spec, CPU, Route.parse("reference:32,itself"), ways)
    base.NAMED[found.backend.name, found.spec.text, CPU] = found.backend
    return found


def grouped_linear() -> SlideSparseLinear:
    spec = GroupSpec(32, COLUMNS, 16, 4, 6, True, 16, "gqs")
    return SlideSparseLinear.of(spec, spec.random(CPU).named(), None)


def norm_models(dtype: torch.dtype) -> list:
    """Functions of activations and residual [tokens, COLUMNS], each with tuples of tensors as result."""
    torch.manual_seed(0)
    a, b, c, weight = linear(64, dtype), linear(32, dtype), grouped_linear(), torch.randn(COLUMNS).to(dtype)
    routed = routed_linear(dtype)

    def layer(x, residual):
        normed, residual = ops.fused_add_rms_norm(x, residual, weight, EPS)
        normed, residual = ops.fused_add_rms_norm(a(normed)[:, :COLUMNS].contiguous(), residual, weight, EPS)
        return b(normed), residual

    def read_twice(x, _):
        normed = ops.rms_norm(x, weight, EPS)
        return a(normed), b(normed)

    def read_by_another(x, _):
        normed = ops.rms_norm(x, weight, EPS)
        return a(normed), normed + 1

    def read_by_groups(x, _):
        return (c(ops.rms_norm(x, weight, EPS)),)

    def read_by_a_way_that_quantizes(x, _):
        return (routed(ops.rms_norm(x, weight, EPS)),)

    def without_weight(x, _):
        return (a(ops.rms_norm(x, None, EPS)),)

    def of_a_part(x, _):
        return (a(ops.rms_norm(x, weight, EPS, 32)),)

    def of_another_dtype(x, _):
        return (a(ops.rms_norm(x, weight.double(), EPS)),)

    def sum_not_taken(x, residual):
        return (a(ops.fused_add_rms_norm(x, residual, weight, EPS)[0]),)

    return [
        layer, read_twice, read_by_another, read_by_groups, read_by_a_way_that_quantizes, without_weight, of_a_part,
        of_another_dtype, sum_not_taken,
    ]  # fmt: skip


def gate_models(dtype: torch.dtype) -> list:
    """Likewise."""
    torch.manual_seed(0)
    b, c, d, weight = linear(32, dtype), grouped_linear(), linear(2 * COLUMNS, dtype), torch.randn(COLUMNS).to(dtype)
    gated = SiluAndMul.forward_native

    def mlp(x, _):
        return (b(gated(d(ops.rms_norm(x, weight, EPS)) / 64)),)

    def gate_of_a_sum(x, residual):
        return b(gated(torch.cat([x + residual, residual], -1))), residual

    def gate_read_by_another(x, _):
        made = gated(d(x))
        return b(made), made + 1

    def gate_read_by_groups(x, _):
        return (c(gated(d(x))),)

    def gate_of_other_halves(x, _):
        first, second = d(x).chunk(2, -1)
        return (b(silu(second) * first),)

    def gate_of_another_width(x, _):
        made = d(x)
        return (b(silu(made[..., :COLUMNS]) * made[..., 1 : COLUMNS + 1]),)

    def another_gate(x, _):
        first, second = d(x).chunk(2, -1)
        return (b(gelu(first) * second),)

    return [
        mlp, gate_of_a_sum, gate_read_by_another, gate_read_by_groups, gate_of_other_halves, gate_of_another_width,
        another_gate,
    ]  # fmt: skip


def compare(model, dtype: torch.dtype) -> dict:
    noted, worst = Noted(), 0.0
    torch._dynamo.reset()
    options = {"post_grad_custom_post_pass": noted, "fx_graph_cache": False}
    compiled = torch.compile(model, fullgraph=True, dynamic=True, options=options)
    for tokens in (5, 11):
        words = [torch.randn(tokens, COLUMNS).to(dtype) for _ in range(2)]
        with enable_torch_wrap(True):
            found = compiled(*words)
        for one, expected in zip(found, model(*words), strict=True):
            assert one.dtype == expected.dtype and one.shape == expected.shape
            worst = max(worst, float((one.float() - expected.float()).abs().max() / expected.float().abs().max()))
    return {"operators": noted.seen, "worst": worst}


def installed() -> dict:
    """What becomes of configurations: the pass in it, and what the hash of compiled graphs is made of."""
    from vllm.config import CompilationConfig, CompilationMode
    from vllm.platforms import current_platform

    told = {}
    for name, mode, passes in (
        ("compiled", CompilationMode.VLLM_COMPILE, {}),
        ("otherwise", CompilationMode.DYNAMO_TRACE_ONCE, {}),
        ("with a pass", CompilationMode.VLLM_COMPILE, {current_platform.pass_key: Theirs()}),
    ):
        compilation = CompilationConfig(mode=mode)
        compilation.inductor_compile_config.update(passes)
        config = SimpleNamespace(compilation_config=compilation, additional_config={})
        for _ in range(2):  # every linear asks for it
            install(config, asked=True)
        held = compilation.inductor_compile_config.get(current_platform.pass_key)
        told[name] = [type(held).__name__, list(config.additional_config.get("slidesparse", {}))]
    return told


def main(task: str, out: str) -> None:
    dtype = getattr(torch, json.loads(Path(task).read_text())["dtype"])
    told = {"installed": installed()} | {
        model.__name__: compare(model, dtype) for model in norm_models(dtype) + gate_models(dtype)
    }
    (Path(out) / "outcome.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
