"""Norms and gated activations in one pass with the quantization behind them in vLLM: a pass over the graphs that it
compiles.

It finds vLLM's RMSNorm (with the residual add, or without) and its silu(gate) * up whose result nothing but linears of
ours reads, and puts one operator in the place of them all. vLLM runs it after its own fusions, while its norms are
still operators of their own; a gated activation is the operators that Inductor made of it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from vllm.compilation.passes.inductor_pass import InductorPass
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.platforms import current_platform

from ..kernels.backends.base import LINEAR
from ..kernels.backends.choose import named
from ..kernels.backends.produced import PRODUCED
from ..kernels.backends.rule import BUCKETS
from ..kernels.few_tokens.division import MOST_TOKENS
from ..kernels.producers.reference import SAME, SILU, SUM, Producer
from ..kernels.sources import digest
from ..kernels.specs import parse_spec

NORMS = {"vllm_ir.rms_norm.default": SAME, "vllm_ir.fused_add_rms_norm.default": SUM}
"""Elements of producers by the operator."""
WORDS = {SAME: "norms", SUM: "norms", SILU: "gated activations"}
"""What the log calls producers, by their elements."""

logger = init_logger(f"vllm.{__name__}")


class FusedProducers(InductorPass):
    """The pass. vLLM keeps it in its configuration and asks for its uuid to find compiled graphs again."""

    def __call__(self, graph: fx.Graph) -> None:
        for word in fuse_producers(graph):
            logger.info_once("SlideSparse: %s are fused with the quantization behind them", word)

    def uuid(self) -> str:
        return str(InductorPass.hash_source(Path(__file__).read_text())) + digest("producers", "backends")


def install(config: Any, *, asked: bool) -> None:
    """Have vLLM run the pass on what it compiles with this configuration; the log says why if it does not, as a warning
    if somebody asked."""
    compilation, say = config.compilation_config, logger.warning_once if asked else logger.info_once
    if compilation.mode != CompilationMode.VLLM_COMPILE:
        say("SlideSparse: norms and gates are not fused: vLLM compiles in mode %s", compilation.mode)
        return
    held = compilation.inductor_compile_config.setdefault(current_platform.pass_key, FusedProducers())
    if not isinstance(held, FusedProducers):
        say("SlideSparse: norms and gates are not fused: the configuration has a pass of its own")
    elif isinstance(config.additional_config, dict):
        # vLLM finds compiled graphs again by the hash of the configuration, from which it leaves passes out.
        config.additional_config.setdefault("slidesparse", {})["producers"] = held.uuid()


@dataclass(frozen=True)
class Found:
    """A producer in a graph. inputs: x, the other input, the weight. value: what it gives. totals: the sum that it
    gives too, as often as that is taken. parts: the nodes that it is made of, the last one last."""

    producer: Producer
    inputs: tuple[fx.Node, fx.Node | None, fx.Node | None]
    value: fx.Node
    totals: tuple[fx.Node, ...] = ()
    parts: tuple[fx.Node, ...] = field(default=(), repr=False)


def fuse_producers(graph: fx.Graph) -> set[str]:
    """Fuse all norms and gated activations of a graph, after AOTAutograd, that nothing but our linears read; what they
    were, as the log calls it."""
    fused = set()
    for node in list(graph.nodes):
        found = _norm(node) or _gate(node)
        readers = [] if found is None else list(found.value.users)
        if found is None or not readers or not all(_reads(reader, found.value) for reader in readers):
            continue
        if _replace(graph, node, found, readers):
            fused.add(WORDS[found.producer.element])
    return fused


def _norm(node: fx.Node) -> Found | None:
    """The norm that a node is. None for others, and for those without a weight of the activations' dtype."""
    element = NORMS.get(str(node.target))
    if element is None or node.kwargs:
        return None
    x, *others = node.args
    other = others.pop(0) if element == SUM else None
    weight, eps, *size = others
    nodes = [one for one in (x, other, weight) if one is not None]
    if not all(isinstance(one, fx.Node) for one in nodes) or weight is None or any(one is not None for one in size):
        return None
    if len({one.meta["val"].dtype for one in nodes}) > 1:  # type: ignore[union-attr]
        return None
    producer, inputs = Producer(element, float(eps)), (x, other, weight)  # type: ignore[arg-type]
    if element == SAME:
        return Found(producer, inputs, node, (), (node,))  # type: ignore[arg-type]
    parts: dict[Any, list[fx.Node]] = {0: [], 1: []}
    for user in node.users:
        if user.target is not operator.getitem:
            return None
        parts[user.args[1]].append(user)
    if len(parts[0]) != 1:
        return None
    return Found(producer, inputs, parts[0][0], tuple(parts[1]), (node,))  # type: ignore[arg-type]


def _gate(node: fx.Node) -> Found | None:
    """The gated activation that a node is the product of, as vLLM writes it; None for others."""
    if node.target is not torch.ops.aten.mul.Tensor or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    places: dict[fx.Node, fx.Node] = {}
    value = node.meta["val"]
    columns = value.shape[-1] if value.dim() == 2 else None
    if not isinstance(columns, int) or not _same(_written_gate(value.dtype, columns), node, places):
        return None
    parts = tuple(given for given in places.values() if given.op == "call_function")
    halves = [one for one in parts if one.target is torch.ops.aten.slice.Tensor and one.args[0] is _input(places)]
    if len(halves) != 2:
        return None
    first, second = sorted(halves, key=lambda half: cast(int, half.args[2]))
    return Found(Producer(SILU), (first, second, None), node, (), parts)


@cache
def _written_gate(dtype: torch.dtype, columns: int) -> fx.Node:
    """The last node of a gated activation of so many columns, in the operators that Inductor makes of it."""
    both = torch.zeros(2, 2 * columns, dtype=dtype, device="cpu")
    graph = make_fx(SiluAndMul.forward_native, decomposition_table=select_decomp_table())(both).graph
    last: fx.Node = graph.output_node().args[0]  # type: ignore[assignment]
    return last


def _same(written: Any, given: Any, places: dict[fx.Node, fx.Node]) -> bool:
    """Whether a node computes what a written one does. places: fills with the nodes that stand for the written ones."""
    if not isinstance(written, fx.Node):
        return type(written) is type(given) and bool(written == given)
    if written in places or not isinstance(given, fx.Node):
        return places.get(written) is given
    if written.op == "call_function":
        alike = written.target == given.target and written.kwargs == given.kwargs == {}
        if not alike or len(written.args) != len(given.args):
            return False
        if not all(_same(one, other, places) for one, other in zip(written.args, given.args, strict=True)):
            return False
    places[written] = given
    return True


def _input(places: dict[fx.Node, fx.Node]) -> fx.Node:
    """What stands for the one input."""
    return next(given for written, given in places.items() if written.op == "placeholder")


def _reads(node: fx.Node, value: fx.Node) -> bool:
    """Whether a node is a linear of ours on that value that takes codes of few tokens, for any number of them. One that
    quantizes on its own would get values, in a launch that takes longer than vLLM's own."""
    if node.target is not LINEAR or node.args[0] is not value or value in node.args[1:]:
        return False
    spec, prepared = parse_spec(str(node.args[3])), cast(list[fx.Node], node.args[1])
    if not spec.plain:
        return False
    backend = named(str(node.args[4]), spec, prepared[0].meta["val"].device)
    return all(backend.operand(tokens) for tokens in BUCKETS if tokens <= MOST_TOKENS)


def _replace(graph: fx.Graph, node: fx.Node, found: Found, readers: list[fx.Node]) -> bool:
    """Whether everything that the linears need is there where the producer stands, and they were replaced."""
    prepared: list[Any] = [tensor for reader in readers for tensor in reader.args[1]]  # type: ignore[union-attr]
    biases: list[Any] = [reader.args[2] for reader in readers]
    places = {one: place for place, one in enumerate(graph.nodes)}
    if any(one is not None and places[one] > places[node] for one in (*prepared, *biases)):
        return False
    lines = [f"{reader.args[4]}\t{len(reader.args[1])}\t{reader.args[3]}" for reader in readers]  # type: ignore[arg-type]
    with graph.inserting_before(node):
        words = (*found.inputs, found.producer.text, prepared, biases, "\n".join(lines))
        made = graph.call_function(PRODUCED, words)
        made.meta["val"] = [reader.meta["val"] for reader in readers]
        if found.producer.element == SUM:
            made.meta["val"].append(found.inputs[0].meta["val"])
        parts = []
        for place, val in enumerate(made.meta["val"]):
            parts.append(graph.call_function(operator.getitem, (made, place)))
            parts[-1].meta["val"] = val
    for reader, part in zip(readers, parts, strict=False):
        reader.replace_all_uses_with(part)
        graph.erase_node(reader)
    for total in found.totals:
        total.replace_all_uses_with(parts[-1])
        graph.erase_node(total)
    if found.value is not node:
        graph.erase_node(found.value)
    for part in reversed(found.parts):
        if not part.users:
            graph.erase_node(part)
    return True
