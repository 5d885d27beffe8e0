"""The CUDA kernels of few tokens against the reference: INT8 to the bit, FP8 as near as torch's own FP8 product."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.few_tokens import kernel
from slideconvert.kernels.few_tokens.exchange import ABSENT, exchanges
from slideconvert.kernels.few_tokens.kernel import FewTokens
from slideconvert.kernels.few_tokens.reference import few_tokens
from slideconvert.kernels.quantize.reference import quantize
from slideconvert.kernels.slide_spec import SlideSpec, SlideWeight

pytestmark = pytest.mark.gpu

LENGTHS = (4, 6, 8, 10, 12, 14, 16, None)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CODES = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
FORMS = pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
INSTRUCTIONS = pytest.mark.parametrize("warpgroup", [True, False], ids=["wgmma", "mma"])


def weight(spec: SlideSpec) -> SlideWeight:
    """Codes of the whole range; two zeros in every block, at random places."""
    shape = spec.rows, spec.columns
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
    if spec.dtype != torch.int8:
        codes = torch.randn(shape, device="cuda").mul_(40).to(spec.dtype).view(torch.int8)
    if spec.length:
        order = torch.rand(spec.rows, -(-spec.columns // spec.length), spec.length, device="cuda").argsort(-1)
        codes[(order < 2).flatten(1)[:, : spec.columns]] = 0
    return SlideWeight(spec, (torch.rand(spec.rows, 1, device="cuda") + 0.01) / 1000, dense=codes.view(spec.dtype))


def activations(tokens: int, spec: SlideSpec, dtype: torch.dtype) -> Tensor:
    x = torch.randn(tokens, spec.columns, device="cuda") * 2.0 ** torch.randint(-9, 9, (tokens, 1)).cuda()
    return x.to(dtype)


def poisoned() -> None:
    """What torch.empty finds next is not a number, and not 0."""
    for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20, 1 << 22):
        torch.full((size,), torch.nan, device="cuda")


def check(found: Tensor, x: Tensor, made: SlideWeight, bias: Tensor | None) -> None:
    """INT8: equal. FP8: the tensor cores add up with fewer bits than float32, as in torch's product."""
    expected = few_tokens(x, made, bias)
    assert found.dtype == x.dtype and found.shape == expected.shape
    if made.spec.dtype == torch.int8:
        assert torch.equal(found, expected), (str(made.spec), x.shape[0], x.dtype)
        return
    codes, scale = quantize(x, made.spec.dtype)
    exact = (codes.double() @ made.dense.double().T) * scale * made.scale.view(-1)
    exact = exact if bias is None else exact + bias.double()
    # Repeated: of a small product torch would add up parts, with smaller errors than those of one sum.
    rows, tokens = (
        torch.nn.functional.pad(part.view(torch.int8), (0, -x.shape[1] % 16)).repeat(
            -(-max(4096, len(part) + 15) // len(part)), 1
        )
        for part in (made.dense, codes)
    )
    rows = rows[: len(rows) // 16 * 16]
    one = torch.ones((), device="cuda")
    args = (tokens.view(codes.dtype), rows.view(codes.dtype).T, one, one)
    plain = torch._scaled_mm(*args, out_dtype=torch.float32, use_fast_accum=True)[: x.shape[0], : made.spec.rows]
    plain = plain.double() * scale * made.scale.view(-1) + (0 if bias is None else bias.double())
    # Torch's error, for parts that are added up in float32; the output rounds once, by half a unit at most.
    allowed = 2 * (plain - exact).norm() + (torch.finfo(x.dtype).eps / 2 + 2.0**-22) * exact.norm()
    assert (found.double() - exact).norm() <= allowed, (str(made.spec), x.shape[0], x.dtype)


def compile_all(ops: list[tuple[FewTokens, int, torch.dtype, torch.dtype | None]]) -> None:
    """A second each, one after another."""

    def compiled(one: tuple[FewTokens, int, torch.dtype, torch.dtype | None]) -> None:
        op, tokens, dtype, bias = one
        kernel._module(tuple(op.constants(dtype, bias, op.division(tokens)).items()), op.device)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compiled, ops))


@INSTRUCTIONS
@FORMS
@CODES
def test_every_pattern_and_number_of_tokens(codes: torch.dtype, dense: bool, warpgroup: bool) -> None:
    if warpgroup and torch.cuda.get_device_capability() != kernel.WARPGROUPS:
        pytest.skip("wgmma needs compute capability 9.0")
    torch.manual_seed(0)
    shapes = [(64, 256), (200, 528), (321, 1040), (4608, 3584), (96, 18944), (3584, 2048)]
    cases = []
    for number, length in enumerate(LENGTHS[:1] if dense else LENGTHS):
        for rows, columns in shapes if dense else (shapes[number % 6], shapes[(number + 3) % 6]):
            spec = SlideSpec(rows, columns, length, codes)
            cases.append((FewTokens(spec, torch.device("cuda", 0), dense=dense, warpgroup=warpgroup), weight(spec)))
    tokens = (1, 2, 7, 8, 9, 16, 17, 31, 33, 64)
    kinds = [(DTYPES[i % 3], (*DTYPES, None)[i % 4]) for i in range(len(cases))]
    compile_all([(op, many, *kind) for (op, _), kind in zip(cases, kinds, strict=True) for many in (8, 16, 32, 64)])
    for (op, made), (dtype, kind) in zip(cases, kinds, strict=True):
        prepared = op.prepare(made)
        for many in tokens:
            x = activations(many, op.spec, dtype)
            bias = None if kind is None else torch.randn(op.spec.rows, device="cuda").to(kind)
            poisoned()
            found = op(x, prepared, bias)
            check(found, x, made, bias)
            assert torch.equal(op(x, prepared, bias), found)


@FORMS
def test_prepared_weights_give_back_the_weight(dense: bool) -> None:
    for length in LENGTHS:
        made = weight(SlideSpec(200, 528, length, torch.int8))
        op = FewTokens(made.spec, torch.device("cuda", 0), dense=dense)
        assert torch.equal(op.weight(*op.prepare(made)).dense, made.dense)


def test_extreme_activations() -> None:
    """Rows of zeros, of the least and the largest numbers; sums as large as they get."""
    spec = SlideSpec(128, 2048, 8, torch.int8)
    made = weight(spec)
    made = SlideWeight(spec, made.scale, dense=torch.where(made.dense == 0, 0, 127).to(torch.int8))
    op = FewTokens(spec, torch.device("cuda", 0))
    x = torch.zeros(5, 2048, dtype=torch.bfloat16, device="cuda")
    x[1], x[2], x[3] = 2.0**-126, torch.finfo(torch.bfloat16).max, -1.0
    x[4, 7] = -0.0
    check(op(x, op.prepare(made), None), x, made, None)


def test_products_that_follow_one_another_at_once() -> None:
    """Launches overlap: none may see what the one before it has not finished."""
    torch.manual_seed(1)
    specs = [SlideSpec(rows, columns, 8, torch.int8) for rows, columns in ((3584, 2048), (2048, 3584), (4608, 2048))]
    mades = [weight(spec) for spec in specs]
    ops = [FewTokens(spec, torch.device("cuda", 0)) for spec in specs]
    weights = [op.prepare(made) for op, made in zip(ops, mades, strict=True)]

    def chain(x: Tensor, run: object) -> Tensor:
        for one in range(3):
            x = run(one, x) / 1000  # type: ignore[operator]
        return x

    for tokens in (1, 16, 40):
        x = activations(tokens, specs[0], torch.bfloat16)
        expected = chain(x, lambda one, x: few_tokens(x, mades[one], None))
        chain(x, lambda one, x: ops[one](x, weights[one], None))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain(x, lambda one, x: ops[one](x, weights[one], None))
        for _ in range(20):
            found.zero_()
            graph.replay()
            assert torch.equal(found, expected)


def test_streams_and_threads_do_not_disturb_each_other() -> None:
    spec = SlideSpec(3584, 3584, 8, torch.int8)
    made = weight(spec)
    op = FewTokens(spec, torch.device("cuda", 0))
    prepared = op.prepare(made)
    xs = [activations(3, spec, torch.bfloat16) for _ in range(4)]
    expected = [few_tokens(x, made, None) for x in xs]
    op(xs[0], prepared, None)
    torch.cuda.synchronize()

    def many(number: int) -> bool:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = [op(xs[number], prepared, None) for _ in range(50)]
            stream.synchronize()
        return all(torch.equal(one, expected[number]) for one in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(4)))


EXCHANGING = (4608, 3584, 8)
"""Rows, columns and length of a linear whose product of few tokens is divided among blocks that exchange sums."""


def test_every_place_of_the_exchange_is_absent_afterwards() -> None:
    spec = SlideSpec(*EXCHANGING, torch.float8_e4m3fn)
    op = FewTokens(spec, torch.device("cuda", 0))
    prepared = op.prepare(weight(spec))
    for tokens in (1, 8, 64):
        op(activations(tokens, spec, torch.bfloat16), prepared, None)
    torch.cuda.synchronize()
    found = exchanges(op.device)
    assert found.of_streams and found.spare
    for held in (*found.of_streams.values(), found.spare):
        assert bool((torch.as_tensor(held, device=op.device) == ABSENT).all())


def test_streams_that_are_captured_first_of_all_take_the_spare_then_memory_of_the_graph() -> None:
    """The graphs replay right, in any order, whether or not anything ran on their streams before."""
    exchanges.cache_clear()  # streams come from a pool: those of other tests may come again
    spec = SlideSpec(*EXCHANGING, torch.int8)
    made, op = weight(spec), FewTokens(spec, torch.device("cuda", 0))
    assert op.division(3).exchanged, "what the rest of this test needs"
    prepared, x = op.prepare(made), activations(3, spec, torch.bfloat16)
    expected = op(x, prepared, None)
    graphs = []
    for _ in range(3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            found = op(x, prepared, None)
        graphs.append((graph, found))
    assert exchanges(op.device).spare is None
    for graph, found in (*reversed(graphs), *graphs):
        found.zero_()
        graph.replay()
        assert torch.equal(found, expected)


def test_nothing_is_kept_but_the_exchange() -> None:
    spec = SlideSpec(3584, 3584, 8, torch.int8)
    op = FewTokens(spec, torch.device("cuda", 0))
    prepared = op.prepare(weight(spec))
    op(activations(16, spec, torch.bfloat16), prepared, None)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        op(activations(16, spec, torch.bfloat16), prepared, None)
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert prepared[0].numel() == spec.rows * spec.columns * 7 // 8


def test_what_cannot_run_is_refused() -> None:
    device = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="no multiple of 8"):
        FewTokens(SlideSpec(64, 260, 4, torch.int8), device).division(1)
    op = FewTokens(SlideSpec(64, 256, 4, torch.int8), device)
    with pytest.raises(ValueError, match="65 tokens"):
        op(torch.zeros(65, 256, device="cuda"), op.prepare(weight(op.spec)), None)
    assert op(torch.zeros(0, 256, device="cuda"), op.prepare(weight(op.spec)), None).shape == (0, 64)
