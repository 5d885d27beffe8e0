"""The CUDA kernel against the reference, on awkward shapes, and its weights to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.group_gemm import kernel, reference
from slideconvert.kernels.group_spec import SIZES, GroupSpec
from slideconvert.kernels.groups import DenseGroups, Weight, decode, pack, pack_dense
from slideconvert.kernels.linear import SlideSparseLinear

pytestmark = pytest.mark.gpu

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight(spec: GroupSpec, keep: Tensor, *, dense: bool = False) -> tuple[GroupSpec, Weight]:
    """Random codes where `keep` [N, K/G] says, made on the CPU, on the GPU."""
    small = (spec.rows, spec.across)
    zero = torch.randint(spec.largest + 1, small, dtype=torch.uint8).masked_fill_(~keep | spec.symmetric, spec.middle)
    stored = torch.randint(spec.largest + 1, (*small, spec.size), dtype=torch.int16)
    codes = ((stored - zero[..., None]) * keep[..., None]).to(spec.codes_dtype).flatten(1)
    scale = (torch.randn(small) / 100).bfloat16().masked_fill(~keep, 1)
    kept, layout = (spec.whole, "dense") if dense else (int(keep.sum()), "gqs")
    spec = replace(spec, kept=kept, layout=layout)
    made: Weight = pack_dense(codes, scale, zero, spec) if dense else pack(codes, scale, zero, keep, spec)
    return spec, type(made).of({name: tensor.cuda() for name, tensor in made.named().items()})


def random_keep(spec: GroupSpec, share: float) -> Tensor:
    return torch.rand(spec.rows, spec.across) < share


def poisoned() -> None:
    """What torch.empty finds next is not a number, and not 0."""
    for size in (1 << 10, 1 << 16, 1 << 20):
        torch.full((size,), torch.nan, device="cuda")


def close(found: Tensor, x: Tensor, made: Weight, bias: Tensor | None, spec: GroupSpec) -> None:
    """Within what summing up in float16 and rounding the result may cost.

    Sums of at most 8 products of numbers below 2^16 - 2^4 round 8 times by at most 2^-11 of themselves: 2^-8 of the sum
    of magnitudes; activations in float32 round by 2^-11 more. The output rounds once more.
    """
    expected = reference.group_gemm(x.float() if spec.activation_bits == 16 else x, made, bias, spec).float()
    magnitudes = _magnitudes(x, made, spec)
    exact = 2.0**-20 if spec.activation_bits == 8 else 2.0**-8
    if x.shape[0] > kernel.SMALL:
        exact = 2 * torch.finfo(x.dtype).eps + 2.0**-20  # weights rounded, then a product of torch's
    unit = torch.finfo(x.dtype).eps
    allowed = exact * magnitudes + 2 * unit * expected.abs() + torch.finfo(x.dtype).tiny
    assert found.dtype == x.dtype and found.shape == expected.shape
    worst = ((found.float() - expected).abs() / allowed).max()
    assert worst <= 1, (str(spec), x.shape[0], x.dtype, float(worst))


def _magnitudes(x: Tensor, made: Weight, spec: GroupSpec) -> Tensor:
    """[M, N]: the sum of the magnitudes of all products."""
    codes, scale = decode(made, spec)
    weights = codes.float() * scale.float().repeat_interleave(spec.size, 1)
    return x.float().abs() @ weights.abs().T + x.float().abs().amax(1, keepdim=True) * 2.0**-20


def run(x: Tensor, made: Weight, bias: Tensor | None, spec: GroupSpec, division: str = "stream") -> Tensor:
    op = kernel.GroupGemm(spec, x.device, dense=isinstance(made, DenseGroups), division=division)
    prepared = op.prepare(made)
    back, given = op.weight(prepared).named(), made.named()
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), (str(spec), name)
    poisoned()
    return op(x, prepared, bias)


def specs() -> Iterator[GroupSpec]:
    for size, bits, symmetric, activation in product(SIZES, (4, 8), (False, True), (16, 8)):
        yield GroupSpec(77, size * 19, size, bits, 0, symmetric, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cases = [(spec, dense) for spec in specs() for dense in (False, True)]
    biases = [DTYPES[number % 3] if number % 4 else None for number in range(len(cases))]
    tokens = [(1, 3, 2, 4)[number // 2 % 4] for number in range(len(cases))]

    def compiled(number: int) -> None:
        spec, dense = cases[number]
        op = kernel.GroupGemm(spec, torch.device("cuda", 0), dense=dense)
        op._launch(dtype, biases[number], min(one for one in op.passes if one >= tokens[number]))

    with ThreadPoolExecutor() as pool:  # a second each, one after another
        list(pool.map(compiled, range(len(cases))))
    for (spec, dense), kind, many in zip(cases, biases, tokens, strict=True):
        made_spec, made = weight(spec, random_keep(spec, 0.5), dense=dense)
        x = torch.randn(many, spec.columns, device="cuda").to(dtype)
        bias = None if kind is None else torch.randn(spec.rows, device="cuda").to(kind)
        close(run(x, made, bias, made_spec), x, made, bias, made_spec)


@pytest.mark.parametrize("division", ["stream", "slice"])
def test_numbers_of_tokens_and_awkward_rows(division: str) -> None:
    torch.manual_seed(1)
    for rows, columns, share in [(1, 16, 1.0), (5000, 64, 0.3), (257, 4096, 0.5), (333, 18944, 0.2), (7, 32, 0.0)]:
        spec = GroupSpec(rows, columns, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, share))
        for tokens in (*range(1, 18), 40):
            x = (
                torch.randn(tokens, columns, device="cuda").bfloat16()
                * 2.0 ** torch.randint(-30, 30, (tokens, 1)).cuda()
            )
            close(run(x, made, None, spec, division), x, made, None, spec)


@pytest.mark.parametrize("division", ["stream", "slice"])
@pytest.mark.parametrize("bits", [16, 8])
def test_rows_that_are_empty_or_full_or_of_one_group(division: str, bits: int) -> None:
    torch.manual_seed(2)
    rows, across = 1201, 300
    spec = GroupSpec(rows, across * 16, 16, 4, 0, False, bits)
    keeps = {name: torch.zeros(rows, across, dtype=torch.bool) for name in ("ends", "one", "few", "last", "middle")}
    keeps["ends"][3:-5] = torch.rand(rows - 8, across) < 0.5
    keeps["one"][torch.arange(rows), torch.randint(across, (rows,))] = True
    keeps["few"][::100] = True
    keeps["last"][-1] = True
    keeps["middle"][500:503] = True
    for keep in keeps.values():
        made_spec, made = weight(spec, keep)
        bias = torch.randn(rows, device="cuda").bfloat16()
        x = torch.randn(2, spec.columns, device="cuda").bfloat16()
        close(run(x, made, bias, made_spec, division), x, made, bias, made_spec)


@pytest.mark.parametrize("dense", [False, True])
def test_the_weight_comes_out_for_unit_vectors(dense: bool) -> None:
    torch.manual_seed(3)
    for bits, size in product((4, 8), (4, 16, 64)):
        spec = GroupSpec(37, size * 5, size, bits, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.6), dense=dense)
        x = torch.eye(spec.columns, device="cuda")
        expected = reference.group_gemm(x, made, None, spec)
        for first in range(0, spec.columns, 16):
            assert torch.equal(run(x[first : first + 16], made, None, spec), expected[first : first + 16])
        assert torch.equal(kernel.GroupGemm(spec, x.device, dense=dense).dequantized(
            kernel.GroupGemm(spec, x.device, dense=dense).prepare(made), torch.float32), expected.T)  # fmt: skip


def test_the_error_is_that_of_a_product_in_bfloat16() -> None:
    """Against float64, at most twice that of torch's own with the same weight."""
    torch.manual_seed(4)
    spec = GroupSpec(512, 4096, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, 0.5))
    codes, scale = decode(made, spec)
    exact = codes.double() * scale.double().repeat_interleave(16, 1)
    for tokens in (1, 4, 16, 64):
        x = torch.randn(tokens, 4096, device="cuda").bfloat16()
        expected = x.double() @ exact.T
        ours, theirs = run(x, made, None, spec), x @ exact.bfloat16().T
        errors = [float((one.double() - expected).norm() / expected.norm()) for one in (ours, theirs)]
        assert errors[0] <= 2 * errors[1], errors


def test_both_divisions_agree_and_every_run_gives_the_same_bits() -> None:
    torch.manual_seed(5)
    for rows, columns in [(300, 4096), (9000, 1024)]:  # more warps than rows, and fewer
        spec = GroupSpec(rows, columns, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.5))
        x = torch.randn(4, columns, device="cuda")
        op = kernel.GroupGemm(spec, x.device)
        prepared = op.prepare(made)
        first = op(x, prepared, None)
        assert all(torch.equal(op(x, prepared, None), first) for _ in range(50))
        # The same products, added up in another order: 12 additions, each of them off by 2^-24 at most.
        other = run(x, made, None, spec, "slice")
        assert ((first - other).abs() <= 2.0**-19 * _magnitudes(x, made, spec)).all()


def test_a_cuda_graph_replays_it() -> None:
    torch.manual_seed(6)
    for rows in (300, 9000):
        spec = GroupSpec(rows, 1024, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.5))
        op = kernel.GroupGemm(spec, torch.device("cuda", 0))
        prepared, x = op.prepare(made), torch.randn(3, 1024, device="cuda")
        op(x, prepared, None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = op(x, prepared, None)
        x.normal_()
        graph.replay()
        assert torch.equal(out, op(x, prepared, None))


def test_a_module_compiled_saved_and_moved() -> None:
    """torch.compile takes a call as one operator; the tensors come back from the GPU to the bit."""
    torch.manual_seed(7)
    for dense in (False, True):
        spec = GroupSpec(300, 1024, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.5), dense=dense)
        linear = SlideSparseLinear.of(spec, made.named(), torch.randn(300, device="cuda"))
        assert linear.backend is not None and linear.backend.name == "group_gemm"
        x = torch.randn(2, 3, 1024, device="cuda").bfloat16()
        expected = linear(x)
        close(expected.view(6, -1), x.view(6, -1), made, linear.bias, spec)
        assert torch.equal(torch.compile(linear, fullgraph=True)(x), expected)
        linear.cpu().half().cuda()
        for name, tensor in made.named().items():
            assert torch.equal(linear.state_dict()[name], tensor)
        with pytest.raises(ValueError, match="its weight on cuda:0"):
            linear(x.cpu())
