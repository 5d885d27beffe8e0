"""The rule and the choice by it: never slower than the host's dense kernels, within the memory that is allowed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slideconvert.kernels.backends import base
from slideconvert.kernels.backends.base import Dtypes
from slideconvert.kernels.backends.choose import BOTH, Settings, choose, named, room
from slideconvert.kernels.backends.int_mm import IntMm
from slideconvert.kernels.backends.ready import make_ready
from slideconvert.kernels.backends.routed import Routed
from slideconvert.kernels.backends.rule import BUCKETS, Route, Way, best_route
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.fake_gpu import CUDA, SERVER, FakeStock, FewDense, FewSparse, Times, fake_gpu, forget
from tests.helpers.linears import all_same

SPEC = SlideSpec(64, 96, 8, torch.int8)
CPU = torch.device("cpu")

# ---- the rule

DENSE, STOCK = Way("dense", "dense", 100), Way("stock", "dense", 100)
SPARSE, FEW = Way("sparse", "sparse", 94), Way("few", "few", 94, 64)
FEW_DENSE = Way("few_dense", "dense", 100, 64)
WAYS = (SPARSE, DENSE, STOCK, FEW, FEW_DENSE)

some_time = st.one_of(st.none(), st.floats(0.5, 2))
some_times = st.fixed_dictionaries(
    {way.name: st.lists(some_time, min_size=len(BUCKETS), max_size=len(BUCKETS)) for way in WAYS}
)


@given(some_times, st.sampled_from([0, 194, 300]), st.sampled_from([("stock",), ("stock", "dense")]))
def test_no_bucket_is_slower_than_the_stock_and_no_more_memory_is_taken_than_allowed(
    drawn: dict[str, list[float | None]], room: int, stock: tuple[str, ...]
) -> None:
    times = {name: dict(zip(BUCKETS, row, strict=True)) for name, row in drawn.items()}
    found = best_route(WAYS, times, stock, room)
    ran = {bucket for bucket in BUCKETS if any(times[name][bucket] for name in stock)}
    if found is None:
        assert not ran
        return
    facts = {way.name: way for way in WAYS}
    forms = {facts[name].form: facts[name].nbytes for name in found.route.ways}
    assert len(forms) == 1 or sum(forms.values()) <= room
    assert found.nbytes == sum(forms.values())
    for bucket in BUCKETS:
        name = found.route.way(bucket)
        assert facts[name].runs(bucket)
        if bucket in ran:
            least = min(taken for one in stock if (taken := times[one][bucket]))
            taken = times[name][bucket]
            assert taken is not None and taken <= least
    assert facts[found.route.way(10**6)].most is None


def constant(**times: float) -> dict[str, dict[int, float | None]]:
    return {name: dict.fromkeys(BUCKETS, taken) for name, taken in times.items()}


def test_what_does_not_gain_stays_with_the_stock() -> None:
    found = best_route((SPARSE, STOCK), constant(sparse=0.99, stock=1.0), ("stock",), 1000)
    assert found is not None and found.route == Route.only("stock")


def test_few_tokens_and_many_take_ways_of_one_prepared_weight() -> None:
    found = best_route(WAYS, constant(sparse=3, dense=1.5, stock=1, few=0.3, few_dense=0.5), ("stock",), 0)
    assert found is not None and found.route.text == "few_dense:64,stock" and found.nbytes == 100
    found = best_route(WAYS, constant(sparse=3, dense=1.5, stock=1, few=0.3, few_dense=0.5), ("stock",), 194)
    assert found is not None and found.route.text == "few:64,stock" and found.nbytes == 194


def test_one_slow_bucket_keeps_a_single_prepared_weight_from_running_sparse() -> None:
    times = constant(sparse=0.5, stock=1)
    times["sparse"][4] = 1.01
    found = best_route((SPARSE, STOCK), times, ("stock",), 0)
    assert found is not None and found.route.text == "stock"
    found = best_route((SPARSE, STOCK), times, ("stock",), 194)
    assert found is not None and found.route.text == "sparse:2,stock:4,sparse"


def test_nothing_is_promised_before_the_stock_was_measured_everywhere() -> None:
    times = constant(sparse=0.5, stock=1)
    del times["stock"][512]
    assert best_route((SPARSE, STOCK), times, ("stock",), 0) is None


def test_where_memory_ended_the_measuring_the_route_goes_on() -> None:
    times = constant(sparse=0.5, stock=1)
    for bucket in (8192, 16384):
        times["sparse"][bucket] = times["stock"][bucket] = None
    found = best_route((SPARSE, STOCK), times, ("stock",), 0)
    assert found is not None and found.route == Route.only("sparse") and 8192 not in found.speedups


@pytest.mark.parametrize("text", ["stock", "few:64,stock", "few:16,dense:1024,sparse"])
def test_routes_come_back_from_their_text(text: str) -> None:
    assert Route.parse(text).text == text


@pytest.mark.parametrize("text", ["", "few:64", "few,stock", "few:64,few:32,stock", "few:x,stock", "a:1:2,b"])
def test_texts_that_are_no_routes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Route.parse(text)


# ---- the choice


def by_name(**times: float) -> Times:
    return lambda name, tokens: times[name]


def test_times_are_measured_once_and_then_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a second process as well; another pattern of the same shape measures its sparse ways alone."""
    with fake_gpu(monkeypatch, tmp_path, by_name(cusparselt=0.5, dense=1, int_mm=2)) as clock:
        first = choose(SPEC, CUDA)
        assert len(clock.asked) == 3 * len(BUCKETS) and "measured in 45.0 s" in first.why
        assert first.backend.name == "cusparselt" and "2.00x at 1," in first.why
        forget(monkeypatch)
        again = choose(SPEC, CUDA)
        assert len(clock.asked) == 3 * len(BUCKETS) and again.backend.name == "cusparselt"
        assert "measured in" not in again.why
        choose(SlideSpec(64, 96, 6, torch.int8), CUDA)
        assert {name for name, _ in clock.asked[3 * len(BUCKETS) :]} == {"cusparselt"}


def test_the_stock_of_a_server_is_what_counts_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our sparse way beats our dense one and loses against the server's own."""
    times = by_name(cusparselt=0.8, dense=1, int_mm=2, stock=0.6)
    with fake_gpu(monkeypatch, tmp_path, times):
        assert choose(SPEC, CUDA).backend.name == "cusparselt"
        served = choose(SPEC, CUDA, "auto", SERVER)
        assert isinstance(served.backend, FakeStock) and "nothing is faster" in served.why


def test_a_kernel_for_few_tokens_takes_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One class and its entry; it is never asked for more tokens than it runs."""
    times = by_name(cusparselt=2, dense=1, int_mm=2, stock=0.6, few_dense=0.3, few_sparse=0.2)
    with fake_gpu(monkeypatch, tmp_path, times, FewDense, FewSparse) as clock:
        choice = choose(SPEC, CUDA, "auto", SERVER)
        assert choice.backend.name == "few_dense:64,stock" and "up to 64 tokens" in choice.why
        assert max(tokens for name, tokens in clock.asked if name.startswith("few")) == 64
        richer = choose(SPEC, CUDA, Settings(memory=1.0), SERVER)
        assert richer.backend.name == "few_sparse:64,stock" and "MB more" in richer.why
        assert choose(SPEC, CUDA, BOTH, SERVER).backend is richer.backend
        assert choose(SPEC, CUDA, Settings(memory=0.5), SERVER).backend is choice.backend
        with pytest.raises(ValueError, match="few_dense runs up to 64 tokens alone"):
            choose(SPEC, CUDA, "few_dense", SERVER)


def test_memory_for_one_more_packed_weight_is_enough_for_any_sparse_form() -> None:
    """3584 x 3584 at 2:6, on an H200: fragments have less metadata, at 2:12 they are padded."""
    dense = Way("dense", "dense", 3584 * 3584)
    for packed, fragments in ((10_716_160, 9_805_824), (13_418_496, 13_762_560)):
        ways = [Way("cusparselt", "cusparselt", packed), Way("few", "fragments", fragments, 64), dense]
        sizes = sorted(way.nbytes for way in ways)
        assert room(ways, Settings(memory=1.0)) >= sizes[-1] + sizes[-2]
        assert room(ways, Settings(memory=0.9)) < sizes[-1] + sizes[-2]
        assert room(ways, Settings()) == sizes[-1]
    assert room([dense], Settings(memory=1.0)) == dense.nbytes


def test_measuring_ends_when_its_time_is_up_and_goes_on_in_the_next_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without all times of the stock, the stock runs. A process that has spent its seconds measures no other shape."""
    times = by_name(cusparselt=0.5, dense=1, int_mm=2, stock=1)
    with fake_gpu(monkeypatch, tmp_path, times) as clock:
        choice = choose(SPEC, CUDA, Settings(measure=5), SERVER)
        assert clock.asked == [("stock", bucket) for bucket in BUCKETS[:5]]
        assert choice.backend.name == "stock" and "not measured to the end in 5.0 s" in choice.why
        assert choose(SlideSpec(32, 96, 8, torch.int8), CUDA, Settings(measure=5), SERVER).backend.name == "stock"
        assert len(clock.asked) == 5
        forget(monkeypatch)
        assert choose(SPEC, CUDA, Settings(measure=1000), SERVER).backend.name == "cusparselt"
        assert len(clock.asked) == 4 * len(BUCKETS) and len(set(clock.asked)) == len(clock.asked)


def test_where_measuring_is_forbidden_the_stock_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_gpu(monkeypatch, tmp_path, by_name()) as clock:
        choice = choose(SPEC, CUDA, Settings(measure=0), SERVER)
        assert choice.backend.name == "stock" and "slideconvert tune" in choice.why and not clock.asked
        assert choose(SPEC, CUDA, Settings(measure=0)).backend.name == "dense"


def test_nothing_is_measured_while_a_graph_is_captured_or_traced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from slideconvert.kernels import autotune

    for name, module in (("is_current_stream_capturing", torch.cuda), ("is_compiling", torch.compiler)):
        with monkeypatch.context() as patch, fake_gpu(patch, tmp_path, by_name()) as clock:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
            patch.setattr(module, name, lambda: True)
            assert not autotune.may_time()
            assert choose(SPEC, CUDA, "auto", SERVER).backend.name == "stock" and not clock.asked


def test_ways_that_cannot_run_have_no_part_and_are_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def times(name: str, tokens: int) -> float | None:
        return {"cusparselt": None if tokens > 1024 else 0.1, "stock": 1.0}.get(name, 2.0)

    with fake_gpu(monkeypatch, tmp_path, times) as clock:
        assert choose(SPEC, CUDA, "auto", SERVER).backend.name == "stock"
        assert choose(SPEC, CUDA, BOTH, SERVER).backend.name == "cusparselt:1024,stock"
        forget(monkeypatch)
        count = len(clock.asked)
        choose(SPEC, CUDA, "auto", SERVER)
        assert len(clock.asked) == count


def test_without_memory_for_two_prepared_weights_the_next_best_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = by_name(cusparselt=2, dense=1, int_mm=2, stock=0.6, few_dense=0.5, few_sparse=0.2)
    caplog.set_level(logging.WARNING)

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("none left")

    with fake_gpu(monkeypatch, tmp_path, times, FewDense, FewSparse):
        monkeypatch.setattr(FewSparse, "prepare", full)
        monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
        settings = Settings(memory=1.0)
        choice = choose(SPEC, CUDA, settings, SERVER)
        found, prepared = make_ready(choice, SPEC.random(CPU), settings, Dtypes(torch.bfloat16), SERVER)
        assert found.backend.name == "few_dense:64,stock" and len(prepared) == 2
        monkeypatch.setattr(FewDense, "prepare", full)
        monkeypatch.setattr(FakeStock, "prepare", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            make_ready(choice, SPEC.random(CPU), settings, Dtypes(torch.bfloat16), SERVER)
    said = [record.getMessage() for record in caplog.records if "no memory" in record.getMessage()]
    assert (
        said[0]
        == "64x96 int8 2:8: no memory for the prepared weight of few_sparse:64,stock, few_dense:64,stock runs it"
    )


# ---- a route runs


def routed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Routed:
    times = by_name(cusparselt=2, dense=1, int_mm=2, stock=0.6, few_dense=0.5, few_sparse=0.2)
    with fake_gpu(monkeypatch, tmp_path, times, FewDense, FewSparse):
        choice = choose(SPEC, CUDA, BOTH, SERVER)
        assert isinstance(choice.backend, Routed)
        return choice.backend


def test_a_route_calls_each_way_for_its_tokens_with_its_own_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = routed(monkeypatch, tmp_path)
    for way in backend.ways:
        monkeypatch.setattr(way, "device", CPU)
        monkeypatch.setattr(type(way), "run", lambda self, *words: self.launch(*words))
    weight = SPEC.random(CPU)
    prepared = backend.prepare(weight)
    assert len(prepared) == 3 + 2 and backend.nbytes == 64 * 96 + 64 * SPEC.slid * 5 // 8
    for tokens, value in ((0, 2.0), (1, 2.0), (64, 2.0), (65, 3.0), (5000, 3.0)):
        out = backend(torch.zeros(tokens, 96), prepared, None)
        assert out.shape == (tokens, 64) and bool((out == value).all())
    assert backend(torch.zeros(3, 5, 96), prepared, None).shape == (3, 5, 64)
    assert all_same(backend.weight(prepared).named(), weight.named())
    assert named(backend.name, SPEC, CUDA) is backend


def test_unknown_ways_in_the_text_of_a_route_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown backend nonsense"):
        named("nonsense:64,dense", SPEC, CPU)


def test_a_linear_on_a_route_is_one_operator_for_torch_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = routed(monkeypatch, tmp_path)
    for way in backend.ways:
        monkeypatch.setattr(way, "device", CPU)
        monkeypatch.setattr(type(way), "run", lambda self, *words: self.launch(*words))
    monkeypatch.setitem(base.NAMED, (backend.name, SPEC.text, CPU), backend)
    linear = SlideSparseLinear.of(SPEC, SPEC.random(CPU).named(), None, backend="reference")
    linear.backend, linear.prepared = backend, backend.prepare(SPEC.random(CPU))
    compiled = torch.compile(linear, fullgraph=True, dynamic=True, backend="eager")
    for tokens, value in ((3, 2.0), (64, 2.0), (100, 3.0)):
        assert bool((compiled(torch.zeros(tokens, 96)) == value).all())


def test_the_table_on_disk_is_readable_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_gpu(monkeypatch, tmp_path, by_name(cusparselt=0.5, dense=1, int_mm=2)):
        choose(SPEC, CUDA)
    [path] = (tmp_path / "slidesparse").glob("times-*.json")
    found = json.loads(path.read_text())
    assert found["times"].keys() == {"64x96 int8 2:8", "64x96 int8 2:inf"}
    assert found["times"]["64x96 int8 2:inf"][IntMm.timed_name()]["16384"] == 2


def test_operations_on_rows_take_activations_of_any_shape() -> None:
    columns, seen = SPEC.columns, list[tuple[int, ...]]()

    def op(x: Tensor, prepared: object, bias: Tensor | None) -> Tensor:
        seen.append(tuple(x.shape))
        return torch.zeros(len(x), SPEC.rows)

    way = FewSparse(SPEC, CPU)
    for shape in ((5, columns), (2, 3, columns), (columns,)):
        assert way.by_rows(op, torch.zeros(shape), (), None).shape == (*shape[:-1], SPEC.rows)
    assert seen == [(5, columns), (6, columns), (1, columns)]
    with pytest.raises(RuntimeError):  # of other columns, which a kernel would read beyond
        way.by_rows(op, torch.zeros(5, columns - 1), (), None)
