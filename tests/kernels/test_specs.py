"""Specs of both kinds: their text, their tensors, and what a tensor-parallel rank holds of a linear."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.cli import doctor
from slideconvert.core.patterns import ALL, BlockPattern
from slideconvert.kernels.backends import choose as choosing
from slideconvert.kernels.backends.base import Backend
from slideconvert.kernels.backends.choose import BACKENDS, backends_for, choose
from slideconvert.kernels.group_spec import BITS, GroupSpec
from slideconvert.kernels.groups import Groups, canonical, decode, kept_groups, pack, pack_dense
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import CODES, SlideSpec, SlideWeight
from slideconvert.kernels.spec import LinearSpec
from slideconvert.kernels.specs import KINDS, parse_spec
from slideconvert.runtime.slidesparse_record import RecordedLinear, read_settings
from tests.conftest import Cli
from tests.helpers.linears import SPECS, all_same, default_dtype, same
from tests.helpers.matrices import as_dtype, codes_on
from tests.unit.test_groups import random_weight

CPU = torch.device("cpu")
RANKS = (1, 2, 3, 4, 8)


# ---- every kind


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_a_spec_and_its_weight_come_back(spec: LinearSpec) -> None:
    assert parse_spec(spec.text) == spec
    named = spec.random(CPU).named()
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()} == spec.tensors()
    assert all_same(spec.weight(named).named(), named)
    backend = choose(spec, CPU).backend
    assert all_same(backend.weight(backend.prepare(spec.weight(named))).named(), named)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_the_default_dtype_changes_nothing(spec: LinearSpec) -> None:
    """vLLM builds models, and so benchmarks backends, with the model's dtype as torch's default."""
    x = torch.randn(3, spec.columns, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    named = spec.random(CPU).named()

    def computed() -> Tensor:
        backend = choose(spec, CPU).backend
        return backend(x, backend.prepare(spec.weight(named)), None)

    expected = computed()
    with default_dtype(torch.bfloat16):
        found, drawn = computed(), spec.random(CPU).named()
    assert same(found, expected)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in drawn.items()} == spec.tensors()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_tensors_of_another_linear_are_refused(spec: LinearSpec) -> None:
    named = spec.random(CPU).named()
    for name in named:
        with pytest.raises(ValueError, match=f"{name} is "):
            spec.weight({**named, name: named[name][..., :-1]})
        with pytest.raises(ValueError, match="were expected"):
            spec.weight({key: tensor for key, tensor in named.items() if key != name})


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_what_every_rank_holds_makes_the_whole(spec: LinearSpec) -> None:
    """Rows of column-parallel linears, columns of row-parallel ones; joined they are the linear again."""
    spec = spec.resized(12, 64)
    named = spec.random(CPU).named()
    whole = floats(*spec.join([spec.cut(named, slice(0, 12), slice(0, 64))]))
    for ranks in (1, 2, 4):
        height, width = 12 // ranks, 64 // ranks
        rows = [slice(height * rank, height * (rank + 1)) for rank in range(ranks)]
        assert torch.equal(floats(*spec.join([spec.cut(named, some, slice(0, 64)) for some in rows])), whole)
        for rank in range(ranks):
            columns = slice(width * rank, width * (rank + 1))
            own, weight = spec.join([spec.cut(named, slice(0, 12), columns)])
            assert (own.rows, own.columns) == (12, width) and torch.equal(floats(own, weight), whole[:, columns])


def floats(spec: LinearSpec, weight: Any) -> Tensor:
    """The weight [N, K]."""
    if isinstance(spec, SlideSpec):
        return weight.dense.double() * weight.scale.double()
    assert isinstance(spec, GroupSpec)
    codes, scale = decode(weight, spec)
    return codes.double() * scale.double().repeat_interleave(spec.size, 1)


def test_the_record_gives_the_text_that_specs_read() -> None:
    for scheme, dtype in CODES.items():
        for layout in ("slide", "dense"):
            for length in (8, None):
                recorded = RecordedLinear(6, 43, scheme, layout, length=length)
                assert parse_spec(recorded.spec) == SlideSpec(6, 43, length, dtype, layout)
                assert KINDS[recorded.kind] is SlideSpec
    for scheme, bits, activations in (("w4a16", 4, 16), ("w4a8", 4, 8), ("w8a16", 8, 16)):
        for symmetric in (False, True):
            recorded = RecordedLinear(9, 48, scheme, "gqs", size=16, kept=12, symmetric=symmetric)
            assert parse_spec(recorded.spec) == GroupSpec(9, 48, 16, bits, 12, symmetric, activations, "gqs")
            assert KINDS[recorded.kind] is GroupSpec


def test_the_last_backend_of_every_kind_runs_anywhere() -> None:
    for spec in SPECS:
        *_, last = backends_for(type(spec)).values()
        assert last.name == "reference" and not last.refusal(spec, CPU)
    assert {backend.runs for backend in BACKENDS} == set(KINDS.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_torch_compile_takes_a_call_as_one_operator(spec: LinearSpec) -> None:
    torch._dynamo.reset()  # so many specs are more than it recompiles for
    linear = SlideSparseLinear.of(spec, spec.random(CPU).named(), torch.randn(spec.rows))
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: linear(x * 2) + 1, fullgraph=True, dynamic=True, backend=noted)
    for tokens in (2, 5):
        x = torch.randn(3, tokens, spec.columns).bfloat16()
        assert torch.equal(compiled(x), linear(x * 2) + 1)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("backends_base.linear" in name for name in called) == len(graphs) and len(called) == 3 * len(graphs)


class Doubling(Backend):
    """A backend that tests can tell from all others."""

    name = "doubling"
    runs = SlideSpec
    on_request = True

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        return "it needs even rows" if spec.rows % 2 else ""

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        return weight.dense.view(torch.int8), weight.scale

    def weight(self, prepared: Any) -> SlideWeight:
        return SlideWeight(self.spec, prepared[1], dense=prepared[0].view(self.spec.dtype))

    def run(self, x: Tensor, prepared: Any, bias: Tensor | None) -> Tensor:
        return x.new_full((*x.shape[:-1], self.spec.rows), 2.0)


def test_a_backend_takes_part_once_it_stands_in_the_registry(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Its class and its entry: the module, torch.compile, the config key and doctor need no more."""
    spec = SlideSpec(6, 43, 8, torch.int8)
    with pytest.raises(ValueError, match="unknown backend 'doubling'"):
        choose(spec, CPU, "doubling")
    monkeypatch.setattr(choosing, "BACKENDS", (Doubling, *BACKENDS))
    monkeypatch.setattr(doctor, "BACKENDS", (Doubling, *BACKENDS))
    backends_for.cache_clear()
    try:
        named = spec.random(CPU).named()
        linear = SlideSparseLinear.of(spec, named, None, backend="doubling")
        assert all_same(linear.state_dict(), named)
        x = torch.randn(3, 43)
        for call in (linear, torch.compile(linear, fullgraph=True, backend="eager")):
            assert torch.equal(call(x), torch.full((3, 6), 2.0))
        assert choose(spec, CPU).backend.name == "reference"
        assert read_settings({"backend": "doubling"}, [backends_for(SlideSpec)], "here").backend == "doubling"
        with pytest.raises(ValueError, match="cannot run 7x43 int8 2:8 on cpu: it needs even rows"):
            choose(replace(spec, rows=7), CPU, "doubling")
        assert json.loads(cli("doctor", "--json").out)["backends"]["cpu"]["doubling"] == ""
    finally:
        backends_for.cache_clear()


# ---- 2:L


def drawn(pattern: BlockPattern, columns: int, rows: int = 5) -> Tensor:
    """Codes [rows, columns] with exactly two zeros, drawn, in every whole block; none in 2:inf."""
    rng = np.random.default_rng(columns)
    order = rng.random((rows, -(-columns // pattern.block), pattern.block)).argsort(-1)
    mask = (order >= 2).reshape(rows, -1)[:, :columns] | (not pattern.prunes)
    return as_dtype(codes_on(mask), torch.int8)


def stored(codes: Tensor, length: int | None) -> tuple[SlideSpec, dict[str, Tensor]]:
    spec = SlideSpec(*codes.shape, length, codes.dtype)
    return spec, SlideWeight(spec, torch.rand(codes.shape[0], 1), dense=codes).named()


@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_a_rank_gets_its_columns_whole_blocks_or_not(pattern: BlockPattern) -> None:
    """Every K up to seven blocks and every number of ranks that divides it; unless they cut blocks, the columns of a
    rank are a linear of the pattern."""
    cut = 0
    for columns in range(pattern.block, 7 * pattern.block + 1):
        codes = drawn(pattern, columns)
        spec, named = stored(codes, pattern.length)
        for ranks in (ranks for ranks in RANKS if columns % ranks == 0):
            width = columns // ranks
            for rank in range(ranks):
                own = slice(rank * width, (rank + 1) * width)
                part = spec.cut(named, slice(1, 4), own)
                assert same(part["codes"], codes[1:4, own]) and same(part["scale"], named["weight_scale"][1:4])
                misfit = spec.misfit(own)
                cut += misfit is not None
                assert misfit is None or (width % pattern.block and ranks > 1)
                if misfit is None:
                    joined, weight = spec.join([part])
                    assert same(weight.slid, SlideWeight(joined, part["scale"], dense=codes[1:4, own]).slid)
                else:
                    assert f"no multiple of L = {pattern.block} of its pattern {pattern}" in misfit[0]
    assert cut > 20


def test_damaged_metadata_is_refused_in_every_window_of_the_rows() -> None:
    spec, named = stored(drawn(BlockPattern(16), 48), 16)
    everything = slice(0, 48)
    for byte in range(48 // 16 * 7 // 2):
        for mask in (0xF0, 0x0F):
            damaged = {**named, "weight_meta": named["weight_meta"].clone()}
            damaged["weight_meta"][0, byte] &= mask
            with pytest.raises(ValueError, match=r"row 0, window .* not ascending and distinct"):
                spec.cut(damaged, slice(0, 2), everything)
            spec.cut(damaged, slice(1, 5), everything)


def test_a_column_in_two_windows_is_refused() -> None:
    spec, named = stored(torch.zeros(1, 8, dtype=torch.int8), 8)
    named["weight_packed"][0, :4] = torch.tensor([5, 0, 5, 0])  # column 2 as the third of one, the first of the next
    named["weight_meta"][0, 0] = 2 | 3 << 2 | 0 << 4 | 1 << 6
    with pytest.raises(ValueError, match="two windows hold"):
        spec.weight(named)


# ---- groups

GROUPS = GroupSpec(24, 16 * 6, 16, 4, 0, False)
EVERY_COLUMN = slice(0, GROUPS.columns)


def in_both_layouts(spec: GroupSpec, share: float = 0.4, seed: int = 0) -> dict[str, tuple[GroupSpec, Any]]:
    """A random linear of which some kept groups are zero, as conversions leave them."""
    spec, codes, scale, zero, keep = random_weight(spec, share, seed)
    codes.view(spec.rows, spec.across, spec.size)[:2, :3] = 0
    spec = replace(spec, kept=min(spec.whole, int(keep.sum()) + 5))
    scale, canonical_zero = canonical(codes, scale, zero, spec)
    weight = pack(codes, scale, canonical_zero, kept_groups(codes, spec), spec)
    dense = replace(spec, layout="dense")
    return {"gqs": (spec, weight), "dense": (dense, pack_dense(codes, scale, canonical_zero, dense))}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_ranks_hold_the_same_bytes_from_both_layouts(bits: int, symmetric: bool) -> None:
    (spec, gqs), (dense_spec, dense) = in_both_layouts(replace(GROUPS, bits=bits, symmetric=symmetric)).values()
    whole = floats(spec, gqs)
    for ranks in (1, 2, 3):
        kept = []
        for rank in range(ranks):
            rows = slice(rank * spec.rows // ranks, (rank + 1) * spec.rows // ranks)
            columns = slice(rank * spec.columns // ranks, (rank + 1) * spec.columns // ranks)
            for place in ((rows, EVERY_COLUMN), (slice(0, spec.rows), columns)):
                own, weight = spec.join([spec.cut(gqs.named(), *place)])
                assert torch.equal(floats(own, weight), whole[place])
                again, other = dense_spec.join([dense_spec.cut(dense.named(), *place)])
                assert own == again and all_same(weight.named(), other.named()) and isinstance(weight, Groups)
            kept.append(own.kept)
        assert sum(kept) == spec.kept and (ranks < 3 or len(set(kept)) > 1)  # some ranks have more than others


def test_fused_linears_keep_the_groups_that_each_has_alone() -> None:
    """Of groups of zeros the first are kept, of every linear by itself."""
    linears = [in_both_layouts(replace(GROUPS, rows=rows), seed=rows) for rows in (24, 16, 9)]
    whole = torch.cat([floats(*one["gqs"]) for one in linears])
    joined = []
    for layout in ("gqs", "dense"):
        parts = [spec.cut(weight.named(), slice(0, spec.rows), EVERY_COLUMN) for spec, weight in
                 (one[layout] for one in linears)]  # fmt: skip
        joined.append(linears[0][layout][0].join(parts))
    (spec, weight), (other_spec, other) = joined
    assert spec == other_spec and all_same(weight.named(), other.named())
    assert spec.rows == 49 and spec.kept == sum(one["gqs"][0].kept for one in linears)
    assert torch.equal(floats(spec, weight), whole)


def test_without_absent_groups_it_is_pack_quantized() -> None:
    found = in_both_layouts(GROUPS, share=2.0)
    for spec, weight in found.values():
        assert spec.kept == spec.whole
        own, joined = spec.join([spec.cut(weight.named(), slice(0, spec.rows), EVERY_COLUMN)])
        assert own == found["dense"][0] and all_same(joined.named(), found["dense"][1].named())


def test_damaged_groups_are_refused() -> None:
    (spec, gqs), (dense_spec, dense) = in_both_layouts(GROUPS).values()
    place = (slice(0, spec.rows), EVERY_COLUMN)
    with pytest.raises(ValueError, match="must ascend within a row"):
        spec.cut({**gqs.named(), "weight_groups": gqs.groups.flip(0)}, *place)
    few = replace(dense_spec, kept=3)
    for refused in (lambda: few.cut(dense.named(), *place), lambda: few.weight(dense.named())):
        with pytest.raises(ValueError, match=r"groups are not zero, 3 may be"):
            refused()


def test_an_error_for_ranks_that_cut_groups_names_sizes_that_fit() -> None:
    spec = GroupSpec(8, 352, 32, 4, 8, False)
    assert spec.misfit(slice(0, 160)) is None
    assert spec.misfit(slice(176, 352)) == (
        "no multiple of its group size 32",
        "convert this layer in groups of 4, 8, 16",
    )
