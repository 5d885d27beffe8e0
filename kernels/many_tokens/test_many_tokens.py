"""The CUDA kernels of many tokens against the reference: INT8 to the bit, FP8 as near as torch's own FP8 product."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.few_tokens.exchange import ABSENT, Exchange, exchanges
from slideconvert.kernels.few_tokens.kernel import WARPGROUPS, FewTokens
from slideconvert.kernels.few_tokens.reference import few_tokens
from slideconvert.kernels.few_tokens.test_few_tokens import CODES, DTYPES, LENGTHS, activations, check, poisoned, weight
from slideconvert.kernels.launch import stream_of
from slideconvert.kernels.many_tokens.kernel import ManyTokens
from slideconvert.kernels.many_tokens.tiles import FORMS, PORTABLE, Form, Wgmma
from slideconvert.kernels.slide_spec import SlideSpec

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
FOUR = Wgmma(128, 4, 2, rate=1.0)
"""A cluster of four blocks, which no linear takes by itself."""
MOST_NUMBERS = 2**28
"""Of activations: 1 GiB in float32, of which the reference has several copies."""


def named(form: Form) -> str:
    return f"{form.source}-{form.tokens}-{form.rows}-{form.cluster}-{form.splits}"


@pytest.mark.parametrize("form", [*FORMS, FOUR, *PORTABLE], ids=named)
@CODES
def test_every_pattern_and_form(codes: torch.dtype, form: Form) -> None:
    if isinstance(form, Wgmma) and torch.cuda.get_device_capability() != WARPGROUPS:
        pytest.skip("wgmma needs compute capability 9.0")
    torch.manual_seed(0)
    shapes = [(64, 256), (200, 528), (321, 1040), (4608, 3584), (96, 18944), (3584, 2048)]
    cases = []
    for number, length in enumerate(LENGTHS):
        for rows, columns in (shapes[number % 6], shapes[(number + 3) % 6]):
            spec = SlideSpec(rows, columns, length, codes)
            op = ManyTokens(spec, CUDA, forms=[form])
            if op.forms:
                cases.append((op, weight(spec)))
    kinds = [(DTYPES[i % 3], (*DTYPES, None)[i % 4]) for i in range(len(cases))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: one[0][0].load(*one[1]), zip(cases, kinds, strict=True)))
    for (op, made), (dtype, kind) in zip(cases, kinds, strict=True):
        prepared = op.prepare(made)
        rounds = 2 * 132 * form.tokens // op.tiled(1, form).row_tiles
        for tokens in (1, 65, form.tokens, form.tokens + 1, 1000, min(rounds, MOST_NUMBERS // op.spec.columns)):
            x = activations(tokens, op.spec, dtype)
            bias = None if kind is None else torch.randn(op.spec.rows, device="cuda").to(kind)
            poisoned()
            found = op(x, prepared, bias)
            check(found, x, made, bias)
            assert torch.equal(op(x, prepared, bias), found)


def test_the_form_that_is_chosen_computes_the_same_for_any_number_of_tokens() -> None:
    spec = SlideSpec(1024, 2048, 8, torch.int8)
    made, op = weight(spec), ManyTokens(spec, CUDA)
    prepared = op.prepare(made)
    x = activations(20000, spec, torch.bfloat16)
    expected = few_tokens(x, made, None)
    for tokens in (0, 1, 63, 64, 65, 127, 129, 500, 1023, 1025, 4097, 16384, 20000):
        assert torch.equal(op(x[:tokens], prepared, None), expected[:tokens])


def test_both_products_read_one_weight() -> None:
    spec = SlideSpec(200, 528, 8, torch.int8)
    made = weight(spec)
    few, many = FewTokens(spec, CUDA), ManyTokens(spec, CUDA)
    x = activations(40, spec, torch.bfloat16)
    prepared = few.prepare(made)
    assert torch.equal(few(x, prepared, None), many(x, prepared, None))
    assert torch.equal(many.weight(*prepared).dense, made.dense)


def test_extreme_activations() -> None:
    spec = SlideSpec(128, 2048, 8, torch.int8)
    made = weight(spec)
    x = torch.zeros(70, 2048, dtype=torch.bfloat16, device="cuda")
    x[1], x[2], x[3] = 2.0**-126, torch.finfo(torch.bfloat16).max, -1.0
    x[4, 7] = -0.0
    op = ManyTokens(spec, CUDA)
    check(op(x, op.prepare(made), None), x, made, None)


def test_products_that_follow_one_another_at_once() -> None:
    """Launches overlap: none may see what the one before it has not finished."""
    torch.manual_seed(1)
    specs = [SlideSpec(rows, columns, 8, torch.int8) for rows, columns in ((3584, 2048), (2048, 3584), (4608, 2048))]
    mades = [weight(spec) for spec in specs]
    ops = [ManyTokens(spec, CUDA) for spec in specs]
    weights = [op.prepare(made) for op, made in zip(ops, mades, strict=True)]

    def chain(x: Tensor, run: object) -> Tensor:
        for one in range(3):
            x = run(one, x) / 1000  # type: ignore[operator]
        return x

    for tokens in (100, 700):
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


def test_more_outputs_than_31_bits_count() -> None:
    spec = SlideSpec(37888, 512, 8, torch.int8)
    made, op = weight(spec), ManyTokens(spec, CUDA)
    x = activations(65536 + 70, spec, torch.bfloat16)
    found = op(x, op.prepare(made), None)
    assert found.numel() > 2**31
    for rows in (slice(0, 300), slice(40000, 40300), slice(65536 - 100, 65536 + 70)):
        assert torch.equal(found[rows], few_tokens(x[rows], made, None))


@CODES
def test_two_clusters_have_a_tile_of_the_last_round(codes: torch.dtype) -> None:
    """Who comes first differs from run to run; outputs do not."""
    for rows, columns, tokens, form in ((3584, 18944, 4096, FORMS[0]), (4608, 3584, 1000, FORMS[2])):
        spec = SlideSpec(rows, columns, 8, codes)
        made, op = weight(spec), ManyTokens(spec, CUDA, forms=[form])
        assert op.tiling(tokens).halved
        x, prepared = activations(tokens, spec, torch.bfloat16), op.prepare(made)
        poisoned()
        found = op(x, prepared, None)
        check(found, x, made, None)
        for _ in range(20):
            assert torch.equal(op(x, prepared, None), found)
        arrivals = exchanges(CUDA).of(stream_of(CUDA), 1)
        assert isinstance(arrivals, Exchange) and bool((torch.as_tensor(arrivals, device=CUDA) == ABSENT).all())


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 8"):
        _ = ManyTokens(SlideSpec(64, 260, 4, torch.int8), CUDA).gpu
