"""A real vLLM on a GPU with our plugin: every kind of linear against stock, and what vLLM does around them.

`make test-vllm-gpu`, with the Python whose vLLM has CUDA. Tables of times are made up, so that the way under test runs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.bench.serving.random_model import GROUP, halve, write
from tests.helpers.demo import converted
from tests.helpers.lora import RANK, adapter
from tests.helpers.vllm_runner import ONE_PROCESS, Job, Outcome, run
from tests.helpers.vllm_worker import snapped


def absent() -> str:
    """Why these tests cannot run here; "" if they can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here"
    return "" if torch.cuda.is_available() else "there is no CUDA GPU here"


pytestmark = [pytest.mark.vllm_gpu, pytest.mark.skipif(bool(absent()), reason=absent() or "it can run")]

LAYERS, VOCABULARY = 2, 8192
TOKENS = (1, 16, 64, 100)
CODES = {"int8": "torch.int8", "fp8": "torch.float8_e4m3fn"}
GQS: dict[str, Any] = {"scheme": "w4a16", "group_size": str(GROUP), "pattern": f"1x{GROUP}:50%", "method": "rtn"}

COMMON: dict[str, Any] = {"dtype": "bfloat16", "gpu_memory_utilization": 0.02, "kv_cache_memory_bytes": 2**30}
"""Of the memory, so little that several runs fit side by side."""
EAGER = {**COMMON, "enforce_eager": True}
SIZES = {"cudagraph_capture_sizes": [1, 2, 4]}
GRAPHS = {**COMMON, "compilation_config": {**SIZES, "mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
COMPILED = {**COMMON, "compilation_config": {**SIZES, "cudagraph_mode": "NONE"}}
COMPILED_GRAPHS = {**COMMON, "compilation_config": SIZES}
STOCK = {"VLLM_PLUGINS": "none"}
NOISE = 0.05
"""Nats between logprobs of about 9 when sums are rounded to bfloat16 in another order: 2**-8 of the logits, of which
the largest are about 4, a few times."""


class Bed:
    """Checkpoints and runs, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Outcome] = {}

    @cached_property
    def source(self) -> Path:
        return write(self.folder / "source", "Llama-3.2-1B", LAYERS, "cuda", VOCABULARY)

    @cached_property
    def halved(self) -> Path:
        halve(self.source, self.folder / "halved")
        return self.folder / "halved"

    @cached_property
    def prompts(self) -> list[list[int]]:
        return torch.randint(3, VOCABULARY, (4, 48), generator=torch.Generator().manual_seed(0)).tolist()

    def checkpoint(self, scheme: str, layout: str) -> Path:
        """scheme: int8 or fp8, at 2:8; or gqs. layout: dense or packed."""
        out = self.folder / f"{scheme}-{layout}"
        if not out.exists():
            words = GQS if scheme == "gqs" else {"scheme": scheme, "pattern": "2:8"}
            source, packed = (self.halved, "gqs") if scheme == "gqs" else (self.source, "slide")
            converted(source, out, layout=packed if layout == "packed" else layout, **words)
        return out

    def run(self, name: str, model: Path, engine: dict[str, Any], way: str = "", **words: Any) -> Outcome:
        """A run of this name, once. way: which is to win; memory for two prepared weights is allowed then."""
        if name not in self._runs:
            environment = words.pop("environment", {})
            if environment != STOCK:
                # Groups have one way alone.
                words["way"] = None if model.name.startswith("gqs") else way
                own = {"XDG_CACHE_HOME": str(self._cache(name)), "SLIDESPARSE_MEMORY": "1"}
                environment = {**own, **environment}
            # In one process, all prompts are there when the first step is made up, so that runs batch them alike.
            alone = ONE_PROCESS if engine.get("tensor_parallel_size", 1) == 1 else {}
            common = {"SLIDESPARSE_BACKEND": "auto", "VLLM_USE_FLASHINFER_SAMPLER": "0", **alone}
            if engine.get("enforce_eager") or engine["compilation_config"].get("mode") == 0:
                common["VLLM_CACHE_ROOT"] = str(self.folder / "vllm")  # nothing compiled: what vLLM knows of models
            job = Job(str(model), self.prompts, engine=engine, environment={**common, **environment}, **words)
            self._runs[name] = run(job, self.folder / f"run-{name}")
        return self._runs[name]

    def _cache(self, name: str) -> Path:
        """The user's cache in a run: the kernels that other runs have compiled, no tables."""
        compiled = list(self.folder.glob("cache-*/slidesparse/*.cubin"))
        folder = self.folder / f"cache-{name}" / "slidesparse"
        folder.mkdir(parents=True)
        for path in compiled:
            shutil.copy(path, folder)
        return folder.parent

    def inputs(self, scheme: str, ranks: int = 1) -> Path:
        """For every linear and each of TOKENS, activations that every quantizer rounds to the same codes."""
        folder = self.folder / f"inputs-{scheme}-{ranks}"
        if folder.exists():
            return folder
        folder.mkdir()
        generator = torch.Generator().manual_seed(0)
        for rank in range(ranks):
            made = {
                f"{name}@{tokens}": snapped(
                    torch.randn(tokens, columns // (ranks if by_rows else 1), generator=generator).bfloat16(),
                    CODES.get(scheme, ""),
                )
                for name, (columns, by_rows) in self.linears.items()
                for tokens in TOKENS
            }
            save_file(made, folder / f"inputs{rank}.safetensors")
        return folder

    @cached_property
    def linears(self) -> dict[str, tuple[int, bool]]:
        """The linears of vLLM: their columns, and whether ranks divide these."""
        config = json.loads((self.source / "config.json").read_text())
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        query = config["num_attention_heads"] * config["head_dim"]
        kinds = {
            "self_attn.qkv_proj": (hidden, False), "self_attn.o_proj": (query, True),
            "mlp.gate_up_proj": (hidden, False), "mlp.down_proj": (inner, True),
        }  # fmt: skip
        return {f"model.layers.{layer}.{name}": kind for layer in range(LAYERS) for name, kind in kinds.items()}

    def weight(self, scheme: str, name: str) -> Tensor:
        """Of a linear of vLLM, as the dense checkpoint has it: [N, K] float64."""
        tensors = load_file(self.checkpoint(scheme, "dense") / "model.safetensors")
        parent, _, kind = name.rpartition(".")
        parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}.get(kind, [kind])
        names = [f"{parent}.{part}" for part in parts]
        return torch.cat([tensors[f"{one}.weight"].double() * tensors[f"{one}.weight_scale"].double() for one in names])


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("vllm"))


def backends(outcome: Outcome, bed: Bed) -> set[str | None]:
    return {outcome.linears()[name]["backend"] for name in bed.linears}


def assert_within_one_unit(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Of the last place of bfloat16: sums of INT8 products are exact, what is multiplied with them is rounded twice."""
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        left, right = found[name].double(), output.double()
        unit = 2.0 ** (torch.maximum(left.abs(), right.abs()).clamp(min=2.0**-126).log2().floor() - 7)
        assert bool(((left - right).abs() <= unit).all()), name


WAYS = {
    "packed-few_sparse": ("packed", "few_sparse", "few_sparse:64,stock"),
    "packed-many_sparse": ("packed", "many_sparse", "many_sparse"),
    "packed-cusparselt": ("packed", "cusparselt", "cusparselt"),
    "packed-few_dense": ("packed", "few_dense", "few_dense:64,stock"),
    "dense-few_dense": ("dense", "few_dense", "few_dense:64,stock"),
}


@pytest.mark.parametrize("scheme", CODES)
@pytest.mark.parametrize("case", WAYS)
def test_every_linear_agrees_with_the_stock_scheme(bed: Bed, scheme: str, case: str) -> None:
    """INT8: within one unit of rounding. FP8: both add up in the tensor cores, with fewer bits than float32; ours may
    be off by twice as much as stock, and by the rounding of the output."""
    layout, way, ran = WAYS[case]
    inputs = bed.inputs(scheme)
    stock = bed.run(
        f"{scheme}-stock-eager", bed.checkpoint(scheme, "dense"), EAGER, environment=STOCK, inputs=str(inputs)
    )
    ours = bed.run(f"{scheme}-{case}-eager", bed.checkpoint(scheme, layout), EAGER, way, inputs=str(inputs))
    assert backends(ours, bed) == {ran}
    assert not stock.results["ranks"][0]["modules"]
    if scheme == "int8":
        assert_within_one_unit(ours.outputs(), stock.outputs())
        return
    given, found, expected = load_file(inputs / "inputs0.safetensors"), ours.outputs(), stock.outputs()
    for name in bed.linears:
        weight = bed.weight(scheme, name)
        for tokens in TOKENS:
            key = f"{name}@{tokens}"
            exact = given[key].double() @ weight.T
            allowed = 2 * (expected[key].double() - exact).norm() + (2.0**-8 + 2.0**-22) * exact.norm()
            assert (found[key].double() - exact).norm() <= allowed, key


def test_grouped_linears_agree_with_the_reference(bed: Bed) -> None:
    """Weights and outputs are rounded to bfloat16, by 2**-8 of them at most each; the reference rounds as well."""
    inputs, model = str(bed.inputs("gqs")), bed.checkpoint("gqs", "packed")
    ours = bed.run("gqs-eager", model, EAGER, inputs=inputs)
    assert backends(ours, bed) == {"group_gemm"}
    job = Job(
        str(model),
        bed.prompts,
        engine=EAGER,
        inputs=inputs,
        environment={**ONE_PROCESS, "VLLM_USE_FLASHINFER_SAMPLER": "0"},
    )
    expected = run(job, bed.folder / "run-gqs-reference").outputs()
    for name, output in ours.outputs().items():
        difference = (output.double() - expected[name].double()).norm()
        assert difference <= 4 * 2.0**-8 * expected[name].double().norm(), name


@pytest.mark.parametrize("scheme", [*CODES, "gqs"])
def test_both_layouts_give_the_same_tokens_in_cuda_graphs(bed: Bed, scheme: str) -> None:
    """On the same way: one weight, one arithmetic."""
    way = "" if scheme == "gqs" else "few_dense"
    found = [
        bed.run(f"{scheme}-{layout}-graphs", bed.checkpoint(scheme, layout), GRAPHS, way)
        for layout in ("packed", "dense")
    ]
    assert backends(found[0], bed) == backends(found[1], bed) == {"group_gemm" if not way else "few_dense:64,stock"}
    for kind in ("greedy", "logprobs"):
        assert found[0].results[kind] == found[1].results[kind]


@pytest.mark.parametrize("scheme", CODES)
def test_cuda_graphs_give_what_compiled_calls_give(bed: Bed, scheme: str) -> None:
    model = bed.checkpoint(scheme, "packed")
    graphs, calls = (
        bed.run(f"{scheme}-sparse-{name}", model, engine, "few_sparse")
        for name, engine in (("graphs", COMPILED_GRAPHS), ("calls", COMPILED))
    )
    assert backends(graphs, bed) == {"few_sparse:64,stock"}
    assert graphs.results["greedy"] == calls.results["greedy"]
    assert graphs.results["logprobs"] == calls.results["logprobs"]


@pytest.mark.parametrize(("scheme", "way"), [*product(CODES, ("few_sparse", "few_dense")), ("int8", "cusparselt")])
def test_fused_producers_in_compiled_graphs(bed: Bed, scheme: str, way: str) -> None:
    """Needs a vLLM whose graphs have norms as operators; they round sums elsewhere, as other orders of adding up do.
    For more than few tokens, vLLM's own products get the codes."""
    model = bed.checkpoint(scheme, "packed")
    plain, fused = (
        bed.run(f"{scheme}-{way}-fuse-{fuse}", model, COMPILED_GRAPHS, way, environment={"SLIDESPARSE_FUSE": fuse})
        for fuse in ("0", "1")
    )
    for word in ("norms are fused", "gated activations are fused"):
        assert word in fused.said and word not in plain.said
    assert 0 < (fused.logprobs - plain.logprobs).abs().mean() < NOISE


@pytest.mark.parametrize("scheme", CODES)
def test_a_dense_checkpoint_that_nothing_speeds_up_is_left_to_vllm(bed: Bed, scheme: str) -> None:
    model = bed.checkpoint(scheme, "dense")
    ours = bed.run(f"{scheme}-left", model, GRAPHS)
    stock = bed.run(f"{scheme}-stock-graphs", model, GRAPHS, environment=STOCK)
    assert {ours.linears()[name]["method"] for name in bed.linears} == {"CompressedTensorsLinearMethod"}
    for kind in ("greedy", "logprobs"):
        assert ours.results[kind] == stock.results[kind]


def test_a_model_wakes_up_as_it_went_to_sleep(bed: Bed) -> None:
    """Its graphs read prepared weights, and memory in which products exchange sums."""
    engine = {**GRAPHS, "enable_sleep_mode": True}
    found = bed.run("int8-sleep", bed.checkpoint("int8", "packed"), engine, "few_sparse", after=("awake",))
    assert backends(found, bed) == {"few_sparse:64,stock"}
    for kind in ("greedy", "logprobs"):
        assert found.results["awake"][kind] == found.results[kind]


def test_the_quantization_may_be_named(bed: Bed) -> None:
    model = bed.checkpoint("int8", "packed")
    plain = bed.run("int8-plain", model, EAGER, "few_sparse")
    named = bed.run("int8-named", model, {**EAGER, "quantization": "compressed-tensors"}, "few_sparse")
    assert backends(named, bed) == {"few_sparse:64,stock"}
    assert named.results["logprobs"] == plain.results["logprobs"]


def test_cached_prefixes_change_nothing_but_rounding(bed: Bed) -> None:
    """The second time, few tokens of each prompt are computed: by another way than the many of the first time."""
    engine = {**EAGER, "enable_prefix_caching": True}
    found = bed.run(
        "int8-prefix", bed.checkpoint("int8", "packed"), engine, "few_sparse", scored=False, after=("again",)
    )
    assert mean_difference(found.results["first"], found.results["again"]["first"]) < NOISE


def test_adapters_run_on_top(bed: Bed) -> None:
    """One that adds nothing changes nothing; another changes what it changes in stock vLLM."""
    engine = {**EAGER, "enable_lora": True, "max_lora_rank": RANK}
    adapters = {name: adapter(bed.source, bed.folder / name, size) for name, size in (("none", 0.0), ("some", 0.05))}
    model, dense = bed.checkpoint("int8", "packed"), bed.checkpoint("int8", "dense")
    plain, none, some = (
        bed.run(f"int8-lora-{name}", model, engine, "few_sparse", adapter=lora, scored=False)
        for name, lora in (("plain", None), *((name, str(path)) for name, path in adapters.items()))
    )
    assert backends(some, bed) == {"few_sparse:64,stock"}
    assert none.results["first"] == plain.results["first"]
    stock = bed.run("int8-lora-stock", dense, engine, environment=STOCK, adapter=str(adapters["some"]), scored=False)
    changed = mean_difference(some.results["first"], plain.results["first"])
    assert changed > 4 * NOISE and mean_difference(some.results["first"], stock.results["first"]) < NOISE


def mean_difference(left: list[float], right: list[float]) -> float:
    return statistics.fmean(abs(a - b) for a, b in zip(left, right, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs")
@pytest.mark.parametrize("scheme", [*CODES, "gqs"])
def test_two_ranks(bed: Bed, scheme: str) -> None:
    """Both layouts give the same tokens, in CUDA graphs. Per layer and rank, INT8 is what stock vLLM makes of it."""
    # The engine is a process of its own, which prompts reach one by one: side by side, they would be batched by chance.
    two = {"tensor_parallel_size": 2, "disable_custom_all_reduce": True, "max_num_seqs": 1}
    way = "" if scheme == "gqs" else "few_dense"
    found = [
        bed.run(f"{scheme}-{layout}-two", bed.checkpoint(scheme, layout), {**GRAPHS, **two}, way)
        for layout in ("packed", "dense")
    ]
    for kind in ("greedy", "logprobs"):
        assert found[0].results[kind] == found[1].results[kind]
    if scheme == "int8":
        inputs = str(bed.inputs(scheme, 2))
        ours = bed.run(
            "int8-two-eager", bed.checkpoint(scheme, "packed"), {**EAGER, **two}, "few_sparse", inputs=inputs
        )
        dense = bed.checkpoint(scheme, "dense")
        stock = bed.run("int8-two-stock", dense, {**EAGER, **two}, environment=STOCK, inputs=inputs)
        assert backends(ours, bed) == {"few_sparse:64,stock"}
        for rank in (0, 1):
            assert_within_one_unit(ours.outputs(rank), stock.outputs(rank))
