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

from benches import synthetic
from slideconvert.kernels.linear import SlideSparseLinear
from tests.helpers.demo import converted

pytestmark = pytest.mark.gpu

PROMPT = torch.randint(0, 128256, (1, 300), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "source", "llama-3.2-1b")


@pytest.fixture
def load(source: Path, tmp_path: Path) -> Callable[..., Any]:
    """load(backend, scheme=…, pattern=…, layout=…) -> the model in bfloat16 on the GPU."""

    def load(backend: str, **words: Any) -> Any:
        out = tmp_path / "-".join(words.values())
        if not out.exists():
            converted(source, out, **words)
        config = AutoConfig.from_pretrained(out)
        config.slidesparse_runtime = {"backend": backend}
        model = AutoModelForCausalLM.from_pretrained(out, config=config, dtype=torch.bfloat16, device_map="cuda")
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
