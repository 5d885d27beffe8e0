"""A whole model of Llama-3.2-1B's shapes in transformers on a GPU: every backend gives the reference's logits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from slideconvert.bench.serving.random_model import write
from slideconvert.kernels.linear import SlideSparseLinear
from tests.helpers.demo import converted

pytestmark = pytest.mark.gpu

PROMPT = torch.randint(0, 128256, (1, 300), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "source", "Llama-3.2-1B")


@pytest.fixture
def load(source: Path, tmp_path: Path) -> Callable[..., Any]:
    """load(backend, scheme=…, pattern=…, layout=…) -> the model in bfloat16 on the GPU, its norms fused or not."""

    def load(backend: str, *, fuse: bool = True, attention: str = "sdpa", **words: Any) -> Any:
        out = tmp_path / "-".join(words.values())
        if not out.exists():
            converted(source, out, **words)
        config = AutoConfig.from_pretrained(out)
        config.slidesparse_runtime = {"backend": backend, "fuse": fuse}
        model = AutoModelForCausalLM.from_pretrained(
            out, config=config, dtype=torch.bfloat16, device_map="cuda", attn_implementation=attention
        )
        linears = [module for module in model.modules() if isinstance(module, SlideSparseLinear)]
        names = {one.backend.name for one in linears if one.backend}
        assert len(linears) == 16 * 7 and (backend == "both" or names == {backend})  # both: by the rule
        return model

    return load


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(PROMPT.cuda(), use_cache=False).logits


def generated(model: Any) -> list[int]:
    with torch.inference_mode():
        return model.generate(PROMPT[:, :20].cuda(), max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()


def dropped(model: Any, measure: Callable[[Any], Any]) -> Any:
    """What is measured on the model, which is then let go."""
    found = measure(model)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return found


@pytest.mark.parametrize("layout", ["slide", "dense"])
def test_int8_logits_and_tokens_are_the_same_on_every_backend(load: Callable[..., Any], layout: str) -> None:
    words = {"scheme": "int8", "pattern": "2:8", "layout": layout}
    expected, tokens = dropped(load("reference", **words), lambda model: (logits(model), generated(model)))
    assert expected.isfinite().all() and expected.std() > 0
    for backend in ("cusparselt", "dense", "both"):
        found, again = dropped(load(backend, **words), lambda model: (logits(model), generated(model)))
        assert torch.equal(found, expected), backend
        assert again == tokens, backend


def test_fp8_logits_differ_no_more_than_those_of_plain_torch(load: Callable[..., Any]) -> None:
    """Sums are rounded at different places, which the layers carry on: as far as torch's own FP8 product strays from
    the reference, twice that is what the sparse one may."""
    words = {"scheme": "fp8", "pattern": "2:8", "layout": "slide"}
    expected, plain, sparse = (
        dropped(load(name, **words), logits).float() for name in ("reference", "dense", "cusparselt")
    )
    assert 0 < (sparse - expected).norm() <= 2 * (plain - expected).norm()


@pytest.mark.parametrize("backend", ["cusparselt", "dense"])
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_fused_norms_stray_no_further_than_another_attention(
    load: Callable[..., Any], scheme: str, backend: str
) -> None:
    """Both round now and then to another bfloat16, which the layers carry on: twice what transformers' other kernel for
    attention makes of it is what fusion may. And they are fused: the logits are not the same."""
    words = {"scheme": scheme, "pattern": "2:8", "layout": "slide"}
    plain, other, fused = (
        dropped(load(backend, **how, **words), logits).float()
        for how in ({"fuse": False}, {"fuse": False, "attention": "eager"}, {"fuse": True})
    )
    assert 0 < (fused - plain).norm() <= 2 * (other - plain).norm()


def test_fused_norms_in_a_compiled_model(load: Callable[..., Any]) -> None:
    """The bits of the eager model."""
    model = load("cusparselt", scheme="int8", pattern="2:8", layout="slide")
    expected = logits(model)
    layers = model.model.layers
    for number, layer in enumerate(layers):
        layers[number] = torch.compile(layer, backend="aot_eager", dynamic=True)
    assert torch.equal(logits(model), expected)
