"""Linears behind a producer, on a CPU: the numbers of the unfused way to the bit, with one quantization for all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.backends import base
from slideconvert.kernels.backends import produced as groups
from slideconvert.kernels.backends.base import shared
from slideconvert.kernels.backends.reference import SlideReference
from slideconvert.kernels.backends.routed import Routed
from slideconvert.kernels.backends.rule import Route
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.linear import SlideSparseLinear, produced
from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers.reference import SUM, Producer, values
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.kernels.spec import LinearSpec
from tests.helpers.produced import ADD_NORM, NORM, PRODUCERS, inputs

CPU = torch.device("cpu")
EVERY = pytest.mark.parametrize("producer", PRODUCERS, ids=lambda producer: producer.text)
INT8, FP8 = torch.int8, torch.float8_e4m3fn
GROUPS: dict[str, tuple[list[LinearSpec], int]] = {
    "q, k, v": ([SlideSpec(rows, 48, 8, INT8) for rows in (6, 3, 3)], 1),
    "2:inf": ([SlideSpec(6, 48, None, FP8), SlideSpec(5, 48, None, FP8, "dense")], 1),
    "two patterns, two kinds of codes": (
        [SlideSpec(6, 48, 8, INT8), SlideSpec(6, 48, 4, INT8), SlideSpec(6, 48, 8, FP8), SlideSpec(2, 48, 8, INT8)],
        3,
    ),
    "one quantizes for itself": ([SlideSpec(6, 48, 6, FP8), GroupSpec(9, 48, 16, 4, 12, True, 8, "gqs")], 1),
    "all do": ([GroupSpec(9, 48, 16, 4, 12, True, 16, "gqs")], 0),
}
"""Specs of linears that read one activation, and how often it is quantized for them."""


def made(specs: list[LinearSpec], dtype: torch.dtype) -> list[SlideSparseLinear]:
    torch.manual_seed(len(specs))
    biases = [torch.randn(spec.rows).to(dtype) if number % 2 else None for number, spec in enumerate(specs)]
    return [
        SlideSparseLinear.of(spec, spec.random(CPU).named(), bias) for spec, bias in zip(specs, biases, strict=True)
    ]


def given(producer: Producer, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Inputs with leading dimensions."""
    found = inputs(producer, 10, 48, dtype)
    return found.x.view(2, 5, 48), None if found.other is None else found.other.view(2, 5, 48), found.weight


@EVERY
@pytest.mark.parametrize("group", GROUPS)
def test_outputs_are_those_of_the_unfused_linears(
    monkeypatch: pytest.MonkeyPatch, producer: Producer, group: str
) -> None:
    specs, times = GROUPS[group]
    called: list[Operand] = []

    def counted(*words: Any) -> Any:
        called.append(words[4])
        return produce(*words)

    produce = groups.reference.produce
    monkeypatch.setattr(groups.reference, "produce", counted)
    for dtype in (torch.bfloat16, torch.float32):
        linears, words = made(specs, dtype), given(producer, dtype)
        plain, total = values(producer, *words)
        found, found_total = produced(producer, *words, linears)
        assert found.shape == plain.shape
        for linear in linears:
            assert torch.equal(linear(found), linear(plain)) and linear(found).dtype == dtype
        assert (found_total is None) == (producer.element != SUM)
        assert found_total is None or (total is not None and torch.equal(found_total, total))
    assert len(called) == 2 * times == 2 * len(set(called))


def test_no_tokens() -> None:
    linears = made(GROUPS["q, k, v"][0], torch.bfloat16)
    empty = torch.empty(1, 0, 48, dtype=torch.bfloat16)
    found, total = produced(ADD_NORM, empty, empty, torch.ones(48).bfloat16(), linears)
    assert linears[0](found).shape == (1, 0, 6) and total is not None and total.shape == (1, 0, 48)


class Itself(SlideReference):
    """Takes no codes."""

    name = "itself"

    def operand(self, tokens: int) -> None:
        return None


class Padded(SlideReference):
    """Takes more rows than there are tokens, as kernels do whose tiles have several."""

    name = "padded"

    def operand(self, tokens: int) -> tuple[Operand, int]:
        return Operand(48, INT8, lifted=True, length=8), tokens + 3

    def run_codes(self, codes: Tensor, scale: Tensor, *words: Any) -> Tensor:
        assert len(codes) >= len(scale) + 3 and not codes[len(scale) :].any()
        return super().run_codes(codes, scale, *words)


def test_there_are_as_many_rows_as_the_one_with_most_needs() -> None:
    plain, padded = made([SlideSpec(6, 48, 8, INT8), SlideSpec(5, 48, 8, INT8)], torch.float32)
    x, weight = torch.randn(4, 48), torch.randn(48)
    expected = [linear(values(NORM, x, None, weight)[0]) for linear in (plain, padded)]
    padded.backend = Padded(padded.spec, CPU)
    found, _ = produced(NORM, x, None, weight, [plain, padded])
    assert all(map(torch.equal, (plain(found), padded(found)), expected))


def on_a_route(monkeypatch: pytest.MonkeyPatch) -> SlideSparseLinear:
    """Up to four tokens by a way that quantizes for itself, more by one that does not."""
    [linear] = made([SlideSpec(6, 48, 8, INT8)], torch.float32)
    ways = {"itself": Itself(linear.spec, CPU), "reference": shared(SlideReference, linear.spec, CPU)}
    linear.backend = Routed(linear.spec, CPU, Route.parse("itself:4,reference"), ways)
    monkeypatch.setitem(base.NAMED, (linear.backend.name, linear.spec.text, CPU), linear.backend)
    return linear


def test_the_number_of_tokens_decides_on_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = on_a_route(monkeypatch)
    assert linear.backend is not None and linear.backend.operand(4) is None
    assert linear.backend.operand(5) == (Operand(48, INT8, lifted=True, length=8), 5)
    for tokens in (3, 7):
        x, weight = torch.randn(tokens, 48), torch.randn(48)
        assert torch.equal(
            linear(produced(NORM, x, None, weight, [linear])[0]), linear(values(NORM, x, None, weight)[0])
        )


def test_all_operands_are_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of routes, so that their kernels are compiled when a model is loaded."""
    route, *linears = on_a_route(monkeypatch), *made(GROUPS["two patterns, two kinds of codes"][0], torch.float32)
    lifted = [Operand(48, codes, lifted=True, length=length) for codes, length in ((INT8, 8), (INT8, 4), (FP8, 8))]
    assert route.backend is not None and groups.operands([route.backend]) == [None, lifted[0]]
    assert groups.operands([linear.backend for linear in linears if linear.backend]) == lifted


def test_what_a_number_of_tokens_starts_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when so many numbers have been met that the first are forgotten."""
    monkeypatch.setattr(groups, "MOST_PLANS", 2)
    linear, asked = on_a_route(monkeypatch), list[int]()
    assert linear.backend is not None
    operand = SlideReference.operand
    monkeypatch.setattr(SlideReference, "operand", lambda self, tokens: asked.append(tokens) or operand(self, tokens))
    weight = torch.randn(48)
    for tokens in (7, 7, 3, 7, 9, 7, 7):
        x = torch.randn(tokens, 48)
        found, expected = produced(NORM, x, None, weight, [linear])[0], values(NORM, x, None, weight)[0]
        assert torch.equal(linear(found), linear(expected))
    assert asked == [7, 9, 7]  # three tokens are asked of a way that has no codes


@EVERY
def test_torch_compile_takes_a_producer_and_its_linears_as_one_operator(
    monkeypatch: pytest.MonkeyPatch, producer: Producer
) -> None:
    torch._dynamo.reset()
    linears = [on_a_route(monkeypatch), *made([SlideSpec(3, 48, 4, FP8)], torch.float32)]
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def layer(x: Tensor, other: Tensor | None, weight: Tensor | None) -> list[Tensor]:
        found, total = produced(producer, x, other, weight, linears)
        outs = [linear(found) for linear in linears]
        return outs if total is None else [*outs, total]

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=noted)
    for tokens in (4, 7, 9):
        some = inputs(producer, tokens, 48, torch.float32)
        words = some.x, some.other, some.weight
        assert all(map(torch.equal, compiled(*words), layer(*words)))
    assert len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("produced" in name for name in called) == 1 and not any("linear" in name for name in called)


def test_wrong_uses_are_refused() -> None:
    linears = made(GROUPS["q, k, v"][0], torch.float32)
    with pytest.raises(ValueError, match="an input of 47 columns, 48 were expected"):
        produced(NORM, torch.randn(2, 47), None, torch.ones(47), linears)
    found, _ = produced(NORM, torch.randn(2, 48), None, torch.ones(48), linears[:2])
    with pytest.raises(ValueError, match="3x48 int8 2:8: its input was quantized for other linears"):
        linears[2](found)
    empty = SlideSparseLinear(SlideSpec(6, 48, 8, INT8), bias=False, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="has not been prepared"):
        produced(NORM, torch.randn(2, 48), None, torch.ones(48), [empty])
