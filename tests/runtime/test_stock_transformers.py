"""What stock transformers (with compressed-tensors, without us) makes of our checkpoints, and what our loader does.

The weights it unpacks are compared with the tensors of the file, read by the safetensors library alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, modeling_utils

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.models.load import load_model
from slideconvert.verify import verify_checkpoint
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO, DOWN_2_6, FP8_LATE, KEEP_FIRST, converted, text_windows
from tests.helpers.serving import grouped

CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@pytest.fixture(scope="module", autouse=True)
def without_us() -> Iterator[None]:
    """transformers as it is before slideconvert is imported: its choice of a quantizer, and not ours before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_utils, "get_hf_quantizer", modeling_utils.get_hf_quantizer.__wrapped__)
        yield


def stock(folder: Path, dtype: torch.dtype | str = torch.float32) -> Any:
    """The checkpoint as a user without slideconvert loads it, weights unpacked, every tensor accounted for."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    logits(model, torch.zeros(1, 1, dtype=torch.long))  # compressed-tensors unpacks on the first forward pass
    return model


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def unquantized_activations(model: nn.Module) -> nn.Module:
    """A copy that computes with the unpacked weights alone, by compressed-tensors' own switch."""
    model = deepcopy(model)
    for module in model.modules():
        module.quantization_enabled = False
    return model


def decoder_linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.endswith("_proj")}


def written(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the file holds for each decoder linear: its weight as stored, and what it means, code * scale in float32."""
    tensors = pico.read(folder)
    stored = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")}
    scale = {name: tensors.get(f"{name}.weight_scale", torch.ones(1)) for name in stored}
    assert all(factor.dtype == torch.float32 for factor in scale.values())
    return stored, {name: codes.float() * scale[name] for name, codes in stored.items()}


def group_zeros(weight: Tensor, pattern: str) -> int:
    """The fewest zeros in any whole group of 2:L, by counting; a ragged tail counts its missing columns as zeros."""
    length = int(pattern.removeprefix("2:"))
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % length))
    return int((padded.view(weight.shape[0], -1, length) == 0).sum(-1).min())


def assert_weights_as_written(model: nn.Module, folder: Path) -> None:
    """Equal to the last bit: both are one float32 product of the same two float32 numbers, a code and a scale."""
    stored, meant = written(folder)
    linears = decoder_linears(model)
    assert linears.keys() == stored.keys() and len(linears) >= 14
    for name, linear in linears.items():
        assert type(linear) is nn.Linear and linear.weight.dtype == torch.float32, name
        assert torch.equal(linear.weight, meant[name]), name
        assert torch.equal(linear.weight == 0, stored[name].float() == 0), name


def assert_same_logits(ours: nn.Module, theirs: nn.Module, tokens: Tensor) -> None:
    """Two float32 runs of the same weights may differ by the rounding of both, and no more.

    What theirs loses to rounding is its distance from its own run in float64; ours may lose as much.
    """
    expected = logits(theirs, tokens)
    rounding = (expected - logits(deepcopy(theirs).double(), tokens)).abs().max()
    assert 0 < rounding < 1e-3  # of logits around 10: the yardstick itself is sound
    assert (logits(ours, tokens) - expected).abs().max() <= 2 * rounding


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return text_windows(256, 4)


# ---- the dense layout, every linear alike


class Loaded(NamedTuple):
    """A dense checkpoint of the demo model, and stock transformers' model of it."""

    folder: Path
    model: Any
    scheme: str
    pattern: str


@pytest.fixture(
    scope="module",
    params=[(scheme, pattern) for scheme in CODES for pattern in ("2:4", "2:8", "2:inf")],
    ids=lambda param: "-".join(param),
)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    scheme, pattern = request.param
    folder = converted(DEMO, tmp_path_factory.mktemp("dense") / "out", scheme=scheme, pattern=pattern)
    return Loaded(folder, stock(folder), scheme, pattern)


def test_unpacked_weights_are_code_times_scale(dense: Loaded) -> None:
    assert_weights_as_written(dense.model, dense.folder)
    stored, _ = written(dense.folder)
    assert {codes.dtype for codes in stored.values()} == {CODES[dense.scheme]}
    if dense.pattern != "2:inf":
        assert all(group_zeros(linear.weight, dense.pattern) >= 2 for linear in decoder_linears(dense.model).values())


def test_logits_with_float_activations(dense: Loaded, windows: Tensor) -> None:
    ours = load_model(Checkpoint.open(dense.folder), activations="float")
    assert_same_logits(ours, unquantized_activations(dense.model), windows)


def test_quantized_identity_gives_the_weight(dense: Loaded) -> None:
    """One-hot tokens through both quantized linears give the weight's columns, which leaves no room for a wrong scale.

    compressed-tensors 0.19 quantizes INT8 activations on a grid of absmax / 127.5 that ends at 127, so its 1 is
    127 / 127.5; its FP8 grid is ours. Its rule per token holds for batches [n, tokens, in] only.
    Tolerance: at most five float32 roundings a side (of 2**-24 each), in the scale of a token and the products.
    """
    one = 127 / 127.5 if dense.scheme == "int8" else 1.0
    ours = decoder_linears(load_model(Checkpoint.open(dense.folder)))
    for name, linear in decoder_linears(dense.model).items():
        columns = linear.weight.T
        tokens = torch.eye(len(columns))[None]
        with torch.no_grad():
            torch.testing.assert_close(ours[name](tokens)[0], columns, rtol=10 * 2**-24, atol=0)
            torch.testing.assert_close(linear(tokens)[0], columns * one, rtol=10 * 2**-24, atol=0)


def test_quantized_linears_on_real_activations(dense: Loaded, windows: Tensor) -> None:
    """Every linear on the input it has inside the model: as near to stock transformers as the two grids allow.

    FP8: both round to the same codes, so only float32 rounding is left: sums of K products and two scalings on
    each side, (2 K + 4) roundings of 2**-24 of the sum of magnitudes at most.
    INT8: the grids differ (see above). Each rounds an input by up to half its step, so an output may differ by
    (step + step') / 2 * sum|w|; and for roundings that are independent and uniform its variance would be
    (step**2 + step'**2) / 12 * sum w**2. They agree better than that, being roundings of the same numbers.
    """
    ours = decoder_linears(load_model(Checkpoint.open(dense.folder)))
    for name, x, theirs in observed(dense.model, windows[:1]):
        linear = ours[name]
        assert isinstance(linear, SlideSparseLinear)
        weight = dense.model.get_submodule(name).weight
        difference = (linear(x) - theirs).abs()
        absmax = x.abs().amax(-1, keepdim=True)
        rounding = (2 * x.shape[-1] + 4) * 2**-24 * nn.functional.linear(x.abs() + absmax / 2**4, weight.abs())
        if dense.scheme == "fp8":
            assert (difference <= rounding).all(), name
            continue
        steps = absmax / 127, absmax / 127.5
        assert (difference <= sum(steps) / 2 * weight.abs().sum(1) + rounding).all(), name
        variance = (steps[0] ** 2 + steps[1] ** 2) / 12 * (weight**2).sum(1)
        assert float((difference**2 / variance).mean()) <= 1, name


def observed(model: nn.Module, tokens: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Name, input and output of every decoder linear, in one pass of `model` over `tokens`."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    hooks = [
        linear.register_forward_hook(lambda _, inputs, output, name=name: seen.append((name, inputs[0], output)))
        for name, linear in decoder_linears(model).items()
    ]
    logits(model, tokens)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks)
    return seen


def test_tied_embeddings_stay_tied(dense: Loaded) -> None:
    assert "lm_head.weight" not in pico.read(dense.folder)
    for model in (dense.model, load_model(Checkpoint.open(dense.folder))):
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(dense.model.lm_head.weight, pico.read(DEMO)["model.embed_tokens.weight"].float())


@pytest.mark.parametrize("scheme", CODES)
def test_loaded_as_bfloat16_zeros_are_exact(tmp_path: Path, scheme: str) -> None:
    """What transformers does unless told otherwise: it rounds the scale to bfloat16, and the product again."""
    folder = converted(DEMO, tmp_path / "out", scheme=scheme, pattern="2:8")
    _, meant = written(folder)
    for name, linear in decoder_linears(stock(folder, "auto")).items():
        assert linear.weight.dtype == torch.bfloat16
        assert torch.equal(linear.weight == 0, meant[name] == 0), name
        # Two roundings to eight significant bits: (1 + 2**-8)**2 - 1 < 2**-7 + 2**-15.
        torch.testing.assert_close(linear.weight.float(), meant[name], rtol=2**-7 + 2**-15, atol=0)


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    folder = converted(DEMO, tmp_path / "out", scheme="int8", pattern="2:8", shard_gb="0.0003")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert_weights_as_written(stock(folder), folder)


# ---- recipes that treat linears differently


def test_kept_layer_and_another_pattern(tmp_path: Path) -> None:
    folder = converted(DEMO, tmp_path / "out", scheme="int8", pattern="2:8", rules=[KEEP_FIRST, DOWN_2_6])
    model, source = stock(folder), pico.read(DEMO)
    assert_weights_as_written(model, folder)
    stored, _ = written(folder)
    for name, linear in decoder_linears(model).items():
        if name.startswith("model.layers.0."):
            assert torch.equal(stored[name], source[f"{name}.weight"]), name
            assert not hasattr(linear, "quantization_scheme"), name
        else:
            assert stored[name].dtype == torch.int8, name
            assert group_zeros(linear.weight, "2:6" if name.endswith("down_proj") else "2:8") >= 2, name


def test_two_schemes(tmp_path: Path, windows: Tensor) -> None:
    folder = converted(DEMO, tmp_path / "out", scheme="int8", pattern="2:8", rules=[KEEP_FIRST, FP8_LATE])
    model = stock(folder)
    assert_weights_as_written(model, folder)
    stored, _ = written(folder)
    expected = (torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fn)
    for name, codes in stored.items():
        assert codes.dtype == expected[int(name.split(".")[2])], name
    ours = load_model(Checkpoint.open(folder), activations="float")
    assert_same_logits(ours, unquantized_activations(model), windows)


def test_pruned_bfloat16_is_a_plain_checkpoint(tmp_path: Path) -> None:
    folder = converted(DEMO, tmp_path / "out", scheme="bf16", pattern="2:8")
    model, source = stock(folder, "auto"), pico.read(DEMO)
    assert not hasattr(model.config, "quantization_config")
    for name, linear in decoder_linears(model).items():
        kept = linear.weight != 0
        assert linear.weight.dtype == torch.bfloat16
        assert group_zeros(linear.weight, "2:8") >= 2, name
        assert torch.equal(linear.weight[kept], source[f"{name}.weight"][kept]), name
        assert int((~kept).sum()) == kept.numel() // 4, name


@pytest.mark.parametrize("words", [{"scheme": "int8"}, {"scheme": "fp8"}, {"scheme": "int8", "rules": [KEEP_FIRST]}])
def test_slide_layout_is_refused_not_misread(tmp_path: Path, words: dict[str, Any]) -> None:
    folder = converted(DEMO, tmp_path / "out", pattern="2:8", layout="slide", **words)
    with pytest.raises(ValueError, match="slide-packed"):
        AutoModelForCausalLM.from_pretrained(folder)


# ---- scales for groups of columns

WHOLE_GROUPS = {"match": "*.down_proj", "keep": "true"}
"""K = 352 is no multiple of 128."""
GROUPED = [(scheme, size, symmetric) for scheme in ("w4a16", "w8a16", "w4a8") for size in (16, 128) for symmetric in
           ("true", "false")]  # fmt: skip


ZERO_POINTS = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
"""Whether transformers loads them packed; 5.23 expects their unpacked size, and compressed-tensors has no say in it."""


def in_groups(folder: Path, scheme: str, size: int, symmetric: str, **words: Any) -> Path:
    rules = [WHOLE_GROUPS] if size == 128 else []
    return converted(DEMO, folder, scheme=scheme, group_size=str(size), symmetric=symmetric, rules=rules, **words)


def stock_groups(folder: Path, dtype: torch.dtype, symmetric: str) -> tuple[Any, torch.dtype]:
    """The model, and the dtype in which codes and scales were multiplied."""
    if symmetric == "true" or ZERO_POINTS:
        return stock(folder, dtype), dtype
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        stock(folder, dtype)
    words = {"quantization_config": CompressedTensorsConfig(dequantize=True), "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **words)
    assert not any(info.values()), info
    return model, torch.bfloat16  # of the scales


def unpacked(folder: Path) -> dict[str, Tensor]:
    """The weights [N, K] of a dense checkpoint in float32, by a reading of compressed-tensors' format in numpy: codes
    with the lowest column in the lowest bits, zero points with the lowest row, or the middle code."""
    config, tensors, found = json.loads((folder / "config.json").read_text()), pico.read(folder), {}
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    bits, size = weights["num_bits"], weights["group_size"]

    def numbers(words: Tensor) -> np.ndarray:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        return (words.numpy().view(np.uint32)[:, :, None] >> shifts & (2**bits - 1)).reshape(len(words), -1)

    for name, scale in tensors.items():
        name, found_scale, _ = name.partition(".weight_scale")
        if found_scale:
            rows, columns = tensors[f"{name}.weight_shape"].tolist()
            packed_zero = tensors.get(f"{name}.weight_zero_point")
            zero = np.full(scale.shape, 2 ** (bits - 1))
            if packed_zero is not None:
                zero = numbers(packed_zero.T.contiguous()).T[:rows]
            codes = numbers(tensors[f"{name}.weight_packed"])[:, :columns].astype(np.float32)
            scales, zeros = scale.float().numpy().repeat(size, 1), zero.astype(np.float32).repeat(size, 1)
            found[name] = torch.from_numpy((codes - zeros) * scales)
    return found


@pytest.mark.parametrize(("scheme", "size", "symmetric"), GROUPED)
def test_weights_in_groups_are_unpacked_as_they_were_meant(
    tmp_path: Path, scheme: str, size: int, symmetric: str
) -> None:
    """In float32 to the last bit: one product of a bfloat16 with an integer, exact. In bfloat16 compressed-tensors
    computes that product in bfloat16, which rounds once, as rounding our float32 does. Zeros are exact in both."""
    folder = in_groups(tmp_path / "out", scheme, size, symmetric, pattern="2:8")
    meant, ours = unpacked(folder), load_model(Checkpoint.open(folder), activations="float")
    assert len(meant) == (24 if size == 128 else 28)
    for dtype in (torch.float32, torch.bfloat16):
        model, multiplied = stock_groups(folder, dtype, symmetric)
        found = decoder_linears(model)
        for name, weight in meant.items():
            assert found[name].weight.dtype == dtype, name
            assert torch.equal(found[name].weight, weight.to(multiplied).to(dtype)), name
            assert torch.equal(found[name].weight == 0, weight == 0) and group_zeros(weight, "2:8") >= 2, name
            assert torch.equal(ours.get_submodule(name).weight, weight), name


@pytest.mark.parametrize("symmetric", ["true", *(["false"] if ZERO_POINTS else [])])
def test_logits_of_weights_in_groups(tmp_path: Path, windows: Tensor, symmetric: str) -> None:
    """W4A16 as our loader computes it; of W4A8, stock transformers rounds the activations as well (in its own way)."""
    folder = in_groups(tmp_path / "a16", "w4a16", 16, symmetric, pattern="2:8")
    model = stock(folder)
    assert_same_logits(load_model(Checkpoint.open(folder)), model, windows)
    eight = stock(in_groups(tmp_path / "a8", "w4a8", 16, symmetric, pattern="2:8"))
    assert_same_logits(unquantized_activations(eight), unquantized_activations(model), windows)
    moved = (logits(eight, windows) - logits(model, windows)).abs().mean()
    ours = load_model(Checkpoint.open(tmp_path / "a8"))
    assert 0 < moved < 2 * (logits(ours, windows) - logits(model, windows)).abs().mean()


def test_the_layout_for_groups_is_refused_not_misread(tmp_path: Path) -> None:
    for name, recipe in (("alone", "w4a16"), ("beside INT8", "mixed")):
        with pytest.raises(ValueError, match="gqs-packed"):
            AutoModelForCausalLM.from_pretrained(grouped(tmp_path / name, recipe))


# ---- other architectures

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BIASED = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers; qwen2 has biases on q, k, v and a tied head, the others a head of their own."""
    return random_model(tmp_path_factory.mktemp("tiny") / request.param)


def random_model(folder: Path) -> Path:
    """A model of the folder's name as model_type, saved by transformers."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": folder.name == "qwen2"}
    unusual = {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    config = AutoConfig.for_model(folder.name, **sizes, **heads, **unusual, max_position_embeddings=64, pad_token_id=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        # Norms would be one and biases zero: losing them would not show.
        for vector in (parameter for parameter in model.parameters() if parameter.ndim == 1):
            vector.add_(torch.randn_like(vector).mul(0.3))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(96, (2, 48), generator=torch.Generator().manual_seed(0))


def test_plain_source_gives_the_logits_of_transformers(tiny: Path, tokens: Tensor) -> None:
    assert_same_logits(load_model(Checkpoint.open(tiny)), stock(tiny), tokens)


@pytest.mark.parametrize("scheme", CODES)
def test_families_convert_verify_and_load(tiny: Path, tokens: Tensor, tmp_path: Path, scheme: str) -> None:
    source = Checkpoint.open(tiny)
    folder = converted(tiny, tmp_path / "dense", scheme=scheme, pattern="2:6")
    slide = converted(tiny, tmp_path / "slide", scheme=scheme, pattern="2:6", layout="slide")
    for made in (folder, slide):
        verdict = verify_checkpoint(Checkpoint.open(made), source=source)
        assert not verdict.faults and len(verdict.linears) == 14
    model, before = stock(folder), stock(tiny)
    assert_weights_as_written(model, folder)
    names = decoder_linears(model)
    biased = [name for name, linear in names.items() if linear.bias is not None]
    assert biased == [name for name in names if tiny.name == "qwen2" and name.endswith(BIASED)]
    parameters = dict(model.named_parameters())
    for name, parameter in before.named_parameters():  # biases, norms, embeddings, head: untouched
        assert torch.equal(parameter, parameters[name]) != name.endswith("_proj.weight"), name
    for made in (folder, slide):
        ours = load_model(Checkpoint.open(made), activations="float")
        assert_same_logits(ours, unquantized_activations(model), tokens)


# ---- perplexity


def test_plain_perplexity_is_that_of_transformers(windows: Tensor) -> None:
    """By transformers' model and a cross-entropy in float64. Ours takes it in float32: its roundings, of about
    2**-24 of a logit near 10, are averaged over 1020 tokens and stay far below one millionth."""
    log_probabilities = logits(stock(DEMO), windows)[:, :-1].double().log_softmax(-1)
    losses = -log_probabilities.gather(-1, windows[:, 1:, None])
    expected = math.exp(float(losses.mean()))
    assert 5 < expected < 20  # the demo model predicts; a random one would have 2048
    assert perplexity(load_model(Checkpoint.open(DEMO)), windows) == pytest.approx(expected, rel=1e-6)


def test_unpruned_int8_is_plain_quantization(cli: Cli, tmp_path: Path, windows: Tensor) -> None:
    assert cli("quantize", DEMO, tmp_path / "plain", "--scheme", "int8").code == 0
    made = converted(DEMO, tmp_path / "made", scheme="int8", pattern="2:inf", layout="slide")
    plain, unpruned = (perplexity(load_model(Checkpoint.open(path)), windows) for path in (tmp_path / "plain", made))
    assert plain == unpruned


@pytest.mark.parametrize("activations", ["quantized", "float"])
@pytest.mark.parametrize("scheme", CODES)
def test_both_layouts_have_one_perplexity(tmp_path: Path, windows: Tensor, scheme: str, activations: str) -> None:
    """The same codes, so the same numbers to the last bit, and others than the unpruned model's."""
    found = []
    for layout in ("dense", "slide"):
        folder = converted(DEMO, tmp_path / layout, scheme=scheme, pattern="2:6", layout=layout)
        assert json.loads((folder / "config.json").read_text())["slidesparse_config"]["layout"] == layout
        found.append(perplexity(load_model(Checkpoint.open(folder), activations=activations), windows))
    assert found[0] == found[1]
    # Pruned (2:6 costs about a fifth), but still the model: pruning the large weights would cost far more.
    assert 1.02 < found[0] / perplexity(load_model(Checkpoint.open(DEMO)), windows) < 1.5
