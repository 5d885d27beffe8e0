"""The CUDA kernel against the reference, on awkward shapes, and its weights to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.group_gemm import kernel, reference
from slideconvert.kernels.group_gemm.division import LIMITS, MOST_TOKENS, Division, divisions
from slideconvert.kernels.group_spec import SIZES, GroupSpec
from slideconvert.kernels.groups import Weight, decode, pack, pack_dense, places
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


def kept(made: Weight, spec: GroupSpec) -> Tensor:
    """Which weights [N, K] have a group: one whose code is its zero point is rounded like the others of the group."""
    if spec.layout == "dense":
        return torch.ones(spec.rows, spec.columns, dtype=torch.bool, device="cuda")
    out = torch.zeros(spec.whole, dtype=torch.bool, device="cuda")
    out[places(made, spec)] = True  # type: ignore[arg-type]
    return out.view(spec.rows, -1).repeat_interleave(spec.size, 1)


def close(found: Tensor, x: Tensor, made: Weight, bias: Tensor | None, spec: GroupSpec) -> None:
    """Within what rounding costs.

    Weights are float16, of a row whose largest scale is at least 2^14 there and sums 2^-24 of it: the product of scale
    and zero point and the weight itself are rounded by 2^-11 of themselves, or by 2^-25 where they are subnormal, which
    is 2^-15 of that scale. Activations are exact but for 2^-36 of the largest; in float32 they are rounded by 2^-11.
    Tensor cores add up with errors below 2^-16 of the sum of magnitudes. The output is rounded once more. Of one or two
    tokens, weights are exact up to the scale; sums of four products with activations are rounded by 2^-11.
    """
    expected = reference.group_gemm(x.float() if spec.activation_bits == 16 else x, made, bias, spec).float()
    codes, scale = decode(made, spec)
    wide = scale.float().abs().repeat_interleave(spec.size, 1)
    weight, exists = codes.float().abs() * wide, kept(made, spec)
    magnitudes = x.float().abs() @ weight.T + 2.0**-36 * x.float().abs().amax(1, keepdim=True) * weight.sum(1)
    if x.shape[0] > MOST_TOKENS:  # weights rounded, then a product of torch's
        allowed = (2 * torch.finfo(x.dtype).eps + 2.0**-16) * magnitudes
    else:
        largest = (wide * exists).amax(1, keepdim=True)
        rounded = 2.0**-11 * (weight + wide * spec.largest * exists) + 2.0**-14 * largest
        allowed = x.float().abs() @ rounded.T + (2.0**-11 + 2.0**-16) * magnitudes
    unit = torch.finfo(x.dtype).eps
    allowed += 2 * unit * expected.abs() + torch.finfo(x.dtype).tiny
    assert found.dtype == x.dtype and found.shape == expected.shape
    worst = ((found.float() - expected).abs() / allowed).max()
    assert worst <= 1, (str(spec), x.shape[0], x.dtype, float(worst))


def run(x: Tensor, made: Weight, bias: Tensor | None, spec: GroupSpec) -> Tensor:
    op = kernel.GroupGemm(spec, x.device)
    prepared = op.prepare(made)
    back, given = op.weight(prepared).named(), made.named()
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), (str(spec), name)
    poisoned()
    return op(x, prepared, bias)


@pytest.mark.parametrize("size", SIZES)
def test_every_kind_of_weight(size: int) -> None:
    torch.manual_seed(0)
    for bits in (4, 8):
        for symmetric, dense in ((False, False), (False, True), (True, False), (True, True)):
            dtype, bias_dtype = DTYPES[(bits // 4 + size) % 3], (None, *DTYPES)[(bits // 4 + size // 4) % 4]
            spec = GroupSpec(77, size * 19, size, bits, 0, symmetric)
            spec, made = weight(spec, random_keep(spec, 0.5), dense=dense)
            bias = None if bias_dtype is None else torch.randn(spec.rows, device="cuda").to(bias_dtype)
            x = torch.randn(3, spec.columns, device="cuda").to(dtype)
            close(run(x, made, bias, spec), x, made, bias, spec)


@pytest.mark.parametrize("activation", [16, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_activation(dtype: torch.dtype, activation: int) -> None:
    torch.manual_seed(1)
    for size, columns in ((8, 1024), (4, 1004)):  # eight activations that follow one another are aligned, or not
        spec = GroupSpec(300, columns, size, 4, 0, False, activation)
        spec, made = weight(spec, random_keep(spec, 0.5))
        for tokens in (1, 11, 64, 70):
            x = torch.randn(tokens, spec.columns, device="cuda").to(dtype)
            close(run(x, made, None, spec), x, made, None, spec)


@pytest.mark.parametrize(
    ("rows", "columns", "share"), [(1, 16, 1.0), (5000, 64, 0.3), (257, 4096, 0.5), (333, 18944, 0.2), (7, 32, 0.0)]
)
def test_numbers_of_tokens_and_awkward_rows(rows: int, columns: int, share: float) -> None:
    torch.manual_seed(2)
    spec = GroupSpec(rows, columns, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, share))
    for tokens in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65):
        powers = 2.0 ** torch.randint(-30, 30, (tokens, 1)).cuda()
        x = torch.randn(tokens, columns, device="cuda").bfloat16() * powers
        close(run(x, made, None, spec), x, made, None, spec)


def test_activations_that_grow_and_fall_along_the_columns() -> None:
    """Sums are adapted whenever the largest activation until then grows."""
    torch.manual_seed(3)
    spec = GroupSpec(500, 8192, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, 0.5))
    steps = torch.arange(8192, device="cuda") // 256
    for tokens in (1, 16, 33):
        for powers in (steps, -steps, steps * 7 % 32, steps * 0 - 120, steps * 0 + 100):
            x = (torch.randn(tokens, 8192, device="cuda") * 2.0**powers).bfloat16()
            x[0, :300] = 0
            close(run(x, made, None, spec), x, made, None, spec)


def test_scales_of_every_size() -> None:
    torch.manual_seed(4)
    spec = GroupSpec(100, 1024, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, 0.5))
    for power in (-100, -60, 60):
        scale = (made.scale.float() * 2.0**power * 2.0 ** torch.randint(-6, 6, made.scale.shape).cuda()).bfloat16()
        other = replace(made, scale=scale)
        x = torch.randn(4, 1024, device="cuda")
        close(run(x, other, None, spec), x, other, None, spec)


def test_codes_that_are_zero_points_give_nothing() -> None:
    """Of one or two tokens, whatever the activation."""
    torch.manual_seed(10)
    spec = GroupSpec(100, 512, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, 0.5))
    codes, _ = decode(made, spec)
    column = int(codes.eq(0).sum(0).argmax())
    for tokens in (1, 2):
        x = torch.zeros(tokens, spec.columns, device="cuda").bfloat16()
        x[:, column] = torch.randn(tokens) * 1e4
        assert (run(x, made, None, spec)[:, codes[:, column] == 0] == 0).all()


@pytest.mark.parametrize("bits", [16, 8])
def test_rows_that_are_empty_or_full_or_of_one_group(bits: int) -> None:
    torch.manual_seed(5)
    rows, across = 1201, 300
    spec = GroupSpec(rows, across * 16, 16, 4, 0, False, bits)
    keeps = {name: torch.zeros(rows, across, dtype=torch.bool) for name in ("ends", "one", "few", "last", "full")}
    keeps["ends"][3:-5] = torch.rand(rows - 8, across) < 0.5
    keeps["one"][torch.arange(rows), torch.randint(across, (rows,))] = True
    keeps["few"][::100] = True
    keeps["last"][-1] = True
    keeps["full"][:] = True
    for keep in keeps.values():
        made_spec, made = weight(spec, keep)
        x = torch.randn(2, spec.columns, device="cuda").bfloat16()
        close(run(x, made, None, made_spec), x, made, None, made_spec)


@pytest.mark.parametrize("dense", [False, True])
def test_the_weight_comes_out_for_unit_vectors(dense: bool) -> None:
    torch.manual_seed(6)
    for bits, size in ((4, 4), (4, 16), (8, 64)):
        spec = GroupSpec(37, size * 9, size, bits, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.6), dense=dense)
        x = torch.eye(spec.columns, device="cuda")
        expected = reference.group_gemm(x, made, None, spec)
        for first in range(0, spec.columns, 64):
            some = x[first : first + 64]
            close(run(some, made, None, spec), some, made, None, spec)
        op = kernel.GroupGemm(spec, x.device)
        for dtype in DTYPES:
            assert torch.equal(op.dequantized(op.prepare(made), dtype), expected.T.to(dtype))


def test_the_error_is_that_of_a_product_in_bfloat16() -> None:
    """Against float64, at most that of torch's own with the same weight."""
    torch.manual_seed(7)
    spec = GroupSpec(512, 4096, 16, 4, 0, False)
    spec, made = weight(spec, random_keep(spec, 0.5))
    codes, scale = decode(made, spec)
    exact = codes.double() * scale.double().repeat_interleave(16, 1)
    for tokens in (1, 4, 16, 64):
        x = torch.randn(tokens, 4096, device="cuda").bfloat16()
        expected = x.double() @ exact.T
        ours, theirs = run(x, made, None, spec), x @ exact.bfloat16().T
        errors = [float((one.double() - expected).norm() / expected.norm()) for one in (ours, theirs)]
        assert errors[0] <= errors[1], errors


class Divided(kernel.GroupGemm):
    """Divided in one way."""

    def __init__(self, spec: GroupSpec, device: torch.device, one: Division) -> None:
        super().__init__(spec, device)
        self.one = one

    def divisions(self, room: int) -> dict[int, Division]:
        return {self.one.tokens: self.one}


@pytest.mark.parametrize("limit", LIMITS)
def test_all_divisions_and_every_run_gives_the_same_bits(limit: int) -> None:
    torch.manual_seed(8)
    device = torch.device("cuda", 0)
    for rows, columns in ((300, 4096), (9000, 1024), (100, 256)):
        spec = GroupSpec(rows, columns, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.5))
        x = torch.randn(limit, columns, device="cuda").bfloat16()
        op = kernel.GroupGemm(spec, device)
        prepared = op.prepare(made)
        seen: dict[tuple[int, int, bool, bool, bool], Divided] = {}
        for gpu in (op.gpu, replace(op.gpu, warpgroups=False)):
            for one in divisions(rows, columns, limit, prepared[3].shape[1], gpu):
                form = one.form
                key = (form.rows, form.columns, form.warpgroup, form.cluster > 1, one.whole)
                if key not in seen or form.cluster > seen[key].one.form.cluster:
                    seen[key] = Divided(spec, device, one)
        with ThreadPoolExecutor() as pool:  # a second each, one after another
            list(pool.map(lambda op, prepared=prepared: op.load(prepared, torch.bfloat16), seen.values()))
        assert len(seen) >= 2
        for op in seen.values():
            first = op(x, prepared, None)
            close(first, x, made, None, spec)
            for _ in range(30):
                assert torch.equal(op(x, prepared, None), first), op.one


def test_a_cuda_graph_replays_it() -> None:
    torch.manual_seed(9)
    for rows in (300, 9000):
        spec = GroupSpec(rows, 1024, 16, 4, 0, False)
        spec, made = weight(spec, random_keep(spec, 0.5))
        op = kernel.GroupGemm(spec, torch.device("cuda", 0))
        prepared, x = op.prepare(made), torch.randn(3, 1024, device="cuda").bfloat16()
        op.load(prepared, x.dtype)
        op(x[:1], prepared, None)
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
