"""Small models of vLLM's norms and our linears, compiled by Inductor with and without our pass. A script for vLLM's own
environment, with slideconvert.

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
from vllm.compilation.passes.inductor_pass import InductorPass
from vllm.ir.op import enable_torch_wrap

from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.runtime.vllm_fusion import FusedNorms, install

CPU, EPS, COLUMNS = torch.device("cpu"), 1e-5, 48


class Theirs(InductorPass):
    """A pass that somebody else asked for."""

    def __call__(self, graph):
        pass


class Noted(FusedNorms):
    """The pass, and what is in the graph after it."""

    def __call__(self, graph):
        super().__call__(graph)
        graph.lint()
        self.seen = [str(node.target) for node in graph.nodes if node.op == "call_function"]

    def uuid(self):
        return None  # nothing is cached


def models(dtype: torch.dtype) -> list:
    """Functions of activations and residual [tokens, COLUMNS], each with tuples of tensors as result."""
    torch.manual_seed(0)
    specs = [SlideSpec(64, COLUMNS, 8, torch.int8), SlideSpec(32, COLUMNS, 8, torch.int8)]
    a, b = (SlideSparseLinear.of(spec, spec.random(CPU).named(), torch.randn(spec.rows).to(dtype)) for spec in specs)
    grouped = GroupSpec(32, COLUMNS, 16, 4, 6, True, 16, "gqs")
    c = SlideSparseLinear.of(grouped, grouped.random(CPU).named(), None)
    weight = torch.randn(COLUMNS).to(dtype)

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

    def without_weight(x, _):
        return (a(ops.rms_norm(x, None, EPS)),)

    def of_a_part(x, _):
        return (a(ops.rms_norm(x, weight, EPS, 32)),)

    def of_another_dtype(x, _):
        return (a(ops.rms_norm(x, weight.double(), EPS)),)

    def sum_not_taken(x, residual):
        return (a(ops.fused_add_rms_norm(x, residual, weight, EPS)[0]),)

    return [
        layer,
        read_twice,
        read_by_another,
        read_by_groups,
        without_weight,
        of_a_part,
        of_another_dtype,
        sum_not_taken,
    ]


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
            install(config)
        held = compilation.inductor_compile_config.get(current_platform.pass_key)
        told[name] = [type(held).__name__, list(config.additional_config.get("slidesparse", {}))]
    return told


def main(task: str, out: str) -> None:
    dtype = getattr(torch, json.loads(Path(task).read_text())["dtype"])
    told = {"installed": installed()} | {model.__name__: compare(model, dtype) for model in models(dtype)}
    (Path(out) / "outcome.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
