"""Every backend computes the linear that the reference computes, in every way it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.backends import native
from slideconvert.kernels.backends.base import Backend
from slideconvert.kernels.backends.choose import backends_for, choose, named
from slideconvert.kernels.backends.cusparselt import Cusparselt
from slideconvert.kernels.backends.produced import kernel_for
from slideconvert.kernels.linear import SlideSparseLinear, produced, ready_to_produce
from slideconvert.kernels.producers.reference import SAME, SILU, Producer
from slideconvert.kernels.slide_spec import SlideSpec, SlideWeight

GPU = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
ROUTE = "cusparselt:16,dense"
"""Both prepared weights in memory, each for some numbers of tokens."""
LENGTHS = [4, 6, 8, 10, 12, 14, 16, None]
CODES = pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times of these shapes are of no use to anybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def example(spec: SlideSpec, device: torch.device | str) -> tuple[SlideWeight, Tensor]:
    """A random weight that follows the pattern, a bias."""
    generator = torch.Generator(device).manual_seed(spec.rows)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    codes = (uniform(spec.rows, spec.columns) * 254 - 127).to(torch.int8)
    codes = codes if spec.dtype == torch.int8 else codes.float().to(spec.dtype)
    if spec.length:
        groups = -(-spec.columns // spec.length)
        order = uniform(spec.rows, groups, spec.length).argsort(-1)
        codes.view(torch.int8)[(order < 2).flatten(1)[:, : spec.columns]] = 0
    codes.view(torch.int8)[codes.view(torch.int8) == -128] = 0
    return SlideWeight(spec, uniform(spec.rows, 1) * 1e-3, dense=codes), uniform(spec.rows)


def run(backend: Backend, weight: SlideWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    return backend(x, backend.prepare(weight), bias)


def linear_of(weight: SlideWeight, bias: Tensor | None = None, backend: str = "auto") -> SlideSparseLinear:
    return SlideSparseLinear.of(weight.spec, weight.named(), bias, backend=backend)


@GPU
@CODES
@pytest.mark.parametrize("name", ["cusparselt", "dense"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_reference(name: str, length: int | None, codes: torch.dtype) -> None:
    for rows, columns in [(64, 112), (1008, 2000)]:
        check(SlideSpec(rows, columns, length, codes), name, (torch.bfloat16,))


@GPU
@CODES
@pytest.mark.parametrize("name", ["cusparselt", "dense", "int_mm", "few_sparse", "few_dense", "many_sparse", ROUTE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_codes_of_a_producer_give_what_the_activations_give(name: str, codes: torch.dtype, dtype: torch.dtype) -> None:
    """To the bit, whatever rows are behind those of the operand."""
    if name == "int_mm" and codes != torch.int8:
        return
    spec = SlideSpec(1008, 2000, 8, codes)
    weight, bias = example(spec, CUDA)
    backend = named(name, spec, CUDA)
    prepared = backend.prepare(weight)
    for tokens in (1, 16, 17, 300, 3000):
        x = torch.randn(tokens, 2000, dtype=dtype, device=CUDA)
        wanted = backend.operand(tokens)
        if wanted is None:
            assert name.startswith("few") and tokens > 64
            continue
        for term in (None, bias.to(dtype), bias):
            made, scale, _ = kernel_for(Producer(SAME), wanted[0], wanted[1] + 16, CUDA)(x, None, None)
            assert scale is not None
            found = backend.run_codes(made, scale, prepared, term, dtype)
            assert torch.equal(found, backend.run(x, prepared, term)), (tokens, term is None)


@GPU
@CODES
def test_linears_behind_a_producer(codes: torch.dtype) -> None:
    """q, k and v of several backends, compiled and not: what the producer's reference gives, but for its doubts."""
    from slideconvert.kernels.producers.kernel import LAUNCHER

    linears = [
        linear_of(*example(SlideSpec(rows, 2048, length, codes), CUDA), backend=backend)
        for rows, length, backend in ((2048, 8, "cusparselt"), (512, 8, "dense"), (512, 4, "cusparselt"))
    ]
    producer = Producer(SILU)
    ready_to_produce(producer, torch.bfloat16, linears)
    compiled_before = len(LAUNCHER._compiled)

    def layer(x: Tensor, other: Tensor) -> list[Tensor]:
        found, _ = produced(producer, x, other, None, linears)
        return [linear(found) for linear in linears]

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for tokens in (5, 100, 700):
        x, other = (torch.randn(2, tokens, 2048, dtype=torch.bfloat16, device=CUDA) for _ in range(2))
        plain = torch.nn.functional.silu(x) * other
        for found, again, linear in zip(layer(x, other), compiled(x, other), linears, strict=True):
            expected = linear(plain).float()
            assert torch.equal(found, again) and len(LAUNCHER._compiled) == compiled_before
            # Codes differ by one where a rounding is in doubt, in one of 2**9: far below what quantization costs.
            assert (found.float() - expected).norm() < 2**-8 * expected.norm()


@GPU
def test_torchs_own_integer_product_equals_the_reference() -> None:
    for length in (4, 8, None):
        check(SlideSpec(1008, 2000, length, torch.int8), "int_mm", (torch.bfloat16, torch.float16, torch.float32))


@GPU
@CODES
@pytest.mark.parametrize("name", ["cusparselt", "dense", ROUTE])
def test_equals_the_reference_in_every_dtype(name: str, codes: torch.dtype) -> None:
    check(SlideSpec(4608, 3584, 8, codes), name, (torch.bfloat16, torch.float16, torch.float32))


@GPU
@CODES
def test_odd_shapes_run_sparse(codes: torch.dtype) -> None:
    for rows, columns in [(43, 57), (7, 4099)]:
        check(SlideSpec(rows, columns, 6, codes), "cusparselt", (torch.bfloat16,))


def check(spec: SlideSpec, name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """INT8: the same bits. FP8: within twice the error that plain torch at the same dtype has, which is next to nothing
    where few outputs happen to round well, or within twice the most that rounding them can cost."""
    weight, bias = example(spec, CUDA)
    backend, reference = named(name, spec, CUDA), choose(spec, CUDA, "reference").backend
    prepared = backend.prepare(weight)
    for tokens in (1, 17, 300):
        for dtype in dtypes:
            x = torch.randn(tokens, spec.columns, device=CUDA).to(dtype)
            for term in (None, bias.to(dtype)):
                found = backend(x, prepared, term)
                expected = run(reference, weight, x, term)
                assert found.dtype == dtype and found.shape == expected.shape
                if spec.dtype == torch.int8:
                    assert torch.equal(found, expected), (str(spec), tokens, dtype)
                else:
                    exact, plain = double(weight, x, term), plain_fp8(weight, x, term)
                    error, rounding = float((found - exact).norm()), torch.finfo(dtype).eps * float(exact.norm())
                    allowed = max(2 * float((plain - exact).norm()), rounding)
                    assert error <= allowed, (str(spec), tokens, dtype, error, allowed)


def double(weight: SlideWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    from slideconvert.kernels.quantize.reference import quantize

    codes, token_scale = quantize(x, weight.spec.dtype)
    out = (codes.double() @ weight.dense.double().T) * token_scale.double() * weight.scale.view(-1).double()
    return out if bias is None else out + bias.double()


def plain_fp8(weight: SlideWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """torch's own FP8 product of the same codes, scaled in float32, rounded to the dtype of x.

    Where the output has more bits than bfloat16, with the accumulation that the tensor cores do by themselves, which
    is the only one there is for 2:4 products.
    """
    from slideconvert.kernels.quantize.reference import quantize

    codes, token_scale = quantize(x, weight.spec.dtype)
    one = torch.ones((), device=x.device)
    fast = x.dtype != torch.bfloat16
    fill = (0, -weight.spec.columns % 16, 0, -weight.spec.rows % 16)
    codes, dense = (
        torch.nn.functional.pad(part.view(torch.int8), fill[:2] + rest).view(part.dtype)
        for part, rest in ((codes, (0, 0)), (weight.dense, fill[2:]))
    )
    out = torch._scaled_mm(codes, dense.T, one, one, out_dtype=torch.float32, use_fast_accum=fast)
    out = out[:, : weight.spec.rows] * token_scale * weight.scale.view(-1)
    return (out if bias is None else out + bias.float()).to(x.dtype).double()


@GPU
@CODES
def test_without_a_compiler_the_same_bits_come_from_python(monkeypatch: pytest.MonkeyPatch, codes: torch.dtype) -> None:
    spec = SlideSpec(96, 208, 8, codes)
    weight, bias = example(spec, CUDA)
    x = torch.randn(5, 208, dtype=torch.bfloat16, device=CUDA)
    expected = run(Cusparselt(spec, CUDA), weight, x, bias)
    monkeypatch.setattr(native, "entry", lambda: None)
    assert torch.equal(run(Cusparselt(spec, CUDA), weight, x, bias), expected)


@GPU
@CODES
@pytest.mark.parametrize("name", ["cusparselt", "dense", ROUTE])
def test_the_prepared_weight_gives_the_codes_back(name: str, codes: torch.dtype) -> None:
    for length in LENGTHS:
        spec = SlideSpec(208, 1008, length, codes)
        weight, _ = example(spec, CUDA)
        backend = named(name, spec, CUDA)
        again = backend.weight(backend.prepare(weight))
        assert torch.equal(again.dense.view(torch.int8), weight.dense.view(torch.int8)), length
        assert torch.equal(again.slid.view(torch.int8), weight.slid.view(torch.int8)), length


@GPU
@CODES
def test_cuda_graphs_replay_on_new_inputs(codes: torch.dtype) -> None:
    spec = SlideSpec(512, 704, 8, codes)
    weight, bias = example(spec, CUDA)
    for name in ("cusparselt", "dense", ROUTE):
        backend = named(name, spec, CUDA)
        prepared = backend.prepare(weight)
        x = torch.randn(50, 704, dtype=torch.bfloat16, device=CUDA)
        backend(x, prepared, bias.bfloat16())
        graph = torch.cuda.CUDAGraph()
        term = bias.bfloat16()
        with torch.cuda.graph(graph):
            out = backend(x, prepared, term)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            out.fill_(float("nan"))
            graph.replay()
            assert torch.equal(out, backend(x, prepared, term))


@GPU
@CODES
def test_torch_compile_takes_a_call_as_one_step(codes: torch.dtype) -> None:
    spec = SlideSpec(512, 704, 8, codes)
    weight, bias = example(spec, CUDA)
    linear = linear_of(weight, bias.bfloat16(), "cusparselt")
    compiled = torch.compile(lambda x: linear(x * 2) + 1, fullgraph=True, dynamic=True)
    for tokens in (3, 40, 200):
        x = torch.randn(2, tokens, 704, dtype=torch.bfloat16, device=CUDA)
        assert torch.equal(compiled(x), linear(x * 2) + 1)


@GPU
def test_other_shapes_of_input() -> None:
    spec = SlideSpec(64, 96, 6, torch.int8)
    weight, _ = example(spec, CUDA)
    for name in ("cusparselt", "dense", "both"):
        linear = linear_of(weight, backend=name)
        base = torch.randn(3, 5, 97, dtype=torch.bfloat16, device=CUDA)
        assert torch.equal(linear(base[..., 1:]), linear(base[..., 1:].contiguous()))
        assert linear(base[:, :0, 1:]).shape == (3, 0, 64)
        assert linear(base[0, 0, 1:]).shape == (64,)


@GPU
def test_the_choice_is_measured_kept_and_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choose.cache_clear()
    spec = SlideSpec(2048, 2048, 4, torch.int8)
    choice = choose(spec, CUDA)
    assert "measured in" in choice.why
    choose.cache_clear()
    again = choose(spec, CUDA)
    assert again.backend is choice.backend and "measured in" not in again.why
    choose.cache_clear()
    assert len(list((tmp_path / "slidesparse").glob("times-*.json"))) == 1


@GPU
@CODES
def test_saved_tensors_are_the_loaded_ones_on_every_backend(codes: torch.dtype) -> None:
    for name in ("cusparselt", "dense", "both", "reference"):
        for layout in ("slide", "dense"):
            weight, _ = example(SlideSpec(64, 112, 10, codes, layout), CUDA)
            saved, wanted = linear_of(weight, backend=name).state_dict(), weight.named()
            assert saved.keys() == wanted.keys()
            assert all(torch.equal(saved[key].view(torch.uint8), wanted[key].view(torch.uint8)) for key in wanted)


@GPU
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_linears_of_a_device_that_is_not_the_current_one() -> None:
    second = torch.device("cuda", 1)
    for name in ("cusparselt", "dense", "both"):
        spec = SlideSpec(64, 112, 8, torch.int8)
        weight, bias = example(spec, second)
        linear = linear_of(weight, bias, name)
        x = torch.randn(4, 112, device=second)
        assert torch.equal(linear(x), run(choose(spec, second, "reference").backend, weight, x, bias))
        assert all(torch.equal(linear.stored()[name], tensor) for name, tensor in weight.named().items())


@GPU
def test_another_device_means_another_backend() -> None:
    spec = SlideSpec(64, 112, 8, torch.int8)
    weight, bias = example(spec, CUDA)
    linear = linear_of(weight, bias, "cusparselt")
    x = torch.randn(4, 112, device=CUDA)
    before = linear(x)
    linear.to("cpu")
    assert linear.backend is not None and linear.backend.name == "reference" and linear.backend.device.type == "cpu"
    assert torch.equal(linear(x.cpu()), before.cpu())
    linear.to("cuda")
    assert torch.equal(linear(x), before)


@GPU
def test_inputs_on_another_device_are_refused() -> None:
    spec = SlideSpec(64, 112, 8, torch.int8)
    weight, _ = example(spec, CUDA)
    for name in ("cusparselt", "dense", "both"):
        with pytest.raises(ValueError, match="is on cpu, its weight on cuda:0"):
            linear_of(weight, backend=name)(torch.randn(4, 112))


# ---- without a GPU


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown layout 'sparse'"):
        SlideSpec(8, 24, 8, torch.int8, "sparse")


def test_the_reference_runs_on_a_cpu_and_says_why() -> None:
    spec = SlideSpec(8, 24, 8, torch.int8)
    choice = choose(spec, torch.device("cpu"))
    assert choice.backend.name == "reference" and "cpu" in choice.why


@pytest.mark.parametrize("name", ["cusparselt", "dense"])
def test_backends_for_gpus_refuse_a_cpu(name: str) -> None:
    with pytest.raises(ValueError, match=f"backend {name} cannot run 8x24 int8 2:8 on cpu: it needs a CUDA device"):
        choose(SlideSpec(8, 24, 8, torch.int8), torch.device("cpu"), name)


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match="unknown backend 'cutlass', known: auto, both, cusparselt, dense, int_mm, few_sparse, few_dense, many_",
    ):
        choose(SlideSpec(8, 24, 8, torch.int8), torch.device("cpu"), "cutlass")


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0)])
@CODES
def test_gpus_without_the_units_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], codes: torch.dtype
) -> None:
    """What is said on GPUs that are not here: 2:4 units from 8.0 (FP8 8.9), dense products from 7.5 (FP8 8.9)."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    spec = SlideSpec(64, 112, 8, codes)
    wanted = {"cusparselt": (8, 0), "dense": (7, 5)} if codes == torch.int8 else {"cusparselt": (8, 9), "dense": (8, 9)}
    for name, least in wanted.items():
        refusal = backends_for(SlideSpec)[name].refusal(spec, CUDA)
        assert ("Some GPU has no" in refusal) == (capability < least), (name, refusal)


def test_a_missing_library_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from slideconvert.kernels.sparse_gemm import library

    library.load.cache_clear()
    monkeypatch.setattr(library, "SONAME", "libnowhere.so")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    refusal = Cusparselt.refusal(SlideSpec(64, 112, 8, torch.int8), CUDA)
    library.load.cache_clear()
    assert "cuSPARSELt not found" in refusal and "pip install nvidia-cusparselt" in refusal


def test_shapes_that_dense_products_do_not_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert "multiples of 16" in backends_for(SlideSpec)["dense"].refusal(SlideSpec(64, 100, 8, torch.int8), CUDA)
    assert not backends_for(SlideSpec)["dense"].refusal(SlideSpec(43, 112, 8, torch.int8), CUDA)
    assert "multiples of 16" in backends_for(SlideSpec)["dense"].refusal(
        SlideSpec(72, 112, 8, torch.float8_e4m3fn), CUDA
    )
