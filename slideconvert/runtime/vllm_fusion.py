"""Norms in one pass with the quantization behind them in vLLM: a pass over the graphs that it compiles.

It finds vLLM's RMSNorm (with the residual add, or without) whose result nothing but linears of ours reads, and puts one
operator in the place of them all. vLLM runs it after its own fusions, while its norms are still operators of their own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx
from vllm.compilation.passes.inductor_pass import InductorPass
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.platforms import current_platform

from ..kernels.backends.base import LINEAR
from ..kernels.backends.produced import PRODUCED
from ..kernels.producers.reference import SAME, SUM, Producer
from ..kernels.sources import digest
from ..kernels.specs import parse_spec

NORMS = {"vllm_ir.rms_norm.default": SAME, "vllm_ir.fused_add_rms_norm.default": SUM}
"""Elements of producers by the operator."""

logger = init_logger(f"vllm.{__name__}")


class FusedNorms(InductorPass):
    """The pass. vLLM keeps it in its configuration and asks for its uuid to find compiled graphs again."""

    def __call__(self, graph: fx.Graph) -> None:
        if fuse_norms(graph):
            logger.info_once("SlideSparse: norms are fused with the quantization behind them")

    def uuid(self) -> str:
        return str(InductorPass.hash_source(self, fuse_norms)) + digest("producers", "backends")


def install(config: Any) -> None:
    """Have vLLM run the pass on what it compiles with this configuration; the log says why if it does not."""
    compilation = config.compilation_config
    if compilation.mode != CompilationMode.VLLM_COMPILE:
        logger.warning_once("SlideSparse: norms are not fused: vLLM compiles in mode %s", compilation.mode)
        return
    held = compilation.inductor_compile_config.setdefault(current_platform.pass_key, FusedNorms())
    if not isinstance(held, FusedNorms):
        logger.warning_once("SlideSparse: norms are not fused: the configuration has a pass of its own")
    elif isinstance(config.additional_config, dict):
        # vLLM finds compiled graphs again by the hash of the configuration, from which it leaves passes out.
        config.additional_config.setdefault("slidesparse", {})["norms"] = held.uuid()


@dataclass(frozen=True)
class Norm:
    """A norm in a graph. value: what it gives. totals: the sum that it gives too, as often as that is taken."""

    producer: Producer
    inputs: tuple[fx.Node, fx.Node | None, fx.Node]
    value: fx.Node
    totals: tuple[fx.Node, ...]


def fuse_norms(graph: fx.Graph) -> int:
    """Fuse all norms of a graph, after AOTAutograd, that nothing but our linears read; how many these were."""
    fused = 0
    for node in list(graph.nodes):
        norm = _norm(node)
        readers = [] if norm is None else list(norm.value.users)
        if norm is not None and readers and all(_reads(reader, norm.value) for reader in readers):
            fused += _replace(graph, node, norm, readers)
    return fused


def _norm(node: fx.Node) -> Norm | None:
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
        return Norm(producer, inputs, node, ())  # type: ignore[arg-type]
    parts: dict[Any, list[fx.Node]] = {0: [], 1: []}
    for user in node.users:
        if user.target is not operator.getitem:
            return None
        parts[user.args[1]].append(user)
    if len(parts[0]) != 1:
        return None
    return Norm(producer, inputs, parts[0][0], tuple(parts[1]))  # type: ignore[arg-type]


def _reads(node: fx.Node, value: fx.Node) -> bool:
    """Whether a node is a linear of ours on that value, with weights that take codes."""
    if node.target is not LINEAR or node.args[0] is not value:
        return False
    return value not in node.args[1:] and parse_spec(str(node.args[3])).plain


def _replace(graph: fx.Graph, node: fx.Node, norm: Norm, readers: list[fx.Node]) -> bool:
    """Whether everything that the linears need is there where the norm stands, and they were replaced."""
    prepared: list[Any] = [tensor for reader in readers for tensor in reader.args[1]]  # type: ignore[union-attr]
    biases: list[Any] = [reader.args[2] for reader in readers]
    places = {one: place for place, one in enumerate(graph.nodes)}
    if any(one is not None and places[one] > places[node] for one in (*prepared, *biases)):
        return False
    lines = [f"{reader.args[4]}\t{len(reader.args[1])}\t{reader.args[3]}" for reader in readers]  # type: ignore[arg-type]
    with graph.inserting_before(node):
        words = (*norm.inputs, norm.producer.text, prepared, biases, "\n".join(lines))
        made = graph.call_function(PRODUCED, words)
        made.meta["val"] = [reader.meta["val"] for reader in readers]
        if norm.producer.element == SUM:
            made.meta["val"].append(norm.inputs[0].meta["val"])
        parts = []
        for place, val in enumerate(made.meta["val"]):
            parts.append(graph.call_function(operator.getitem, (made, place)))
            parts[-1].meta["val"] = val
    for reader, part in zip(readers, parts, strict=False):
        reader.replace_all_uses_with(part)
        graph.erase_node(reader)
    for total in norm.totals:
        total.replace_all_uses_with(parts[-1])
        graph.erase_node(total)
    for gone in dict.fromkeys((norm.value, node)):
        graph.erase_node(gone)
    return True
