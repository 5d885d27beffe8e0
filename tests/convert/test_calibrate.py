"""The calibration engine against a twin: the stock transformers model, with hooks on its linears.

The twin is given the weights that the engine has made so far, and so sees what the next linears must have been shown.

Tolerance. Engine and twin compute the same sums in float32, in other orders. A rounding moves a number by 2**-24 of
itself; behind three layers of some ten operations, an entry of a matrix of second moments differs by less than 1e-6
(measured) of the product of its two inputs' root mean squares. CLOSE allows ten times that. What a wrong order of
things changes is 1e-2 and more, as the tests show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from slideconvert.calibrate.activations import PLACES
from slideconvert.calibrate.engine import compress_layers
from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.run import RunSettings
from slideconvert.calibrate.stream import StreamOptions, held_out
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.errors import InputError
from slideconvert.plan.calibration import Calibration
from slideconvert.plan.plan import Plan
from slideconvert.plan.presets import PRESETS
from slideconvert.prune import METHODS, Problem, solvers
from slideconvert.prune.statistics import Accumulator, Statistics
from tests.helpers import pico
from tests.helpers.calibrated import (
    DEMO,
    DEMO_TEXT,
    KINDS,
    LENGTH,
    SAMPLES,
    STAGES,
    numbers,
    plan_for,
    quality,
    weights,
    write_model,
    write_text,
    write_tokenizer,
)

CLOSE = 1e-5
CPU = torch.device("cpu")
Shown = list[Statistics]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, pico.VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What the solvers are shown from now on, call by call."""
    calls: Shown = []

    def watched(solve: Callable[..., Any]) -> Callable[..., Any]:
        def solver(problem: Problem[Any]) -> Any:
            calls.append(problem.statistics)
            return solve(problem)

        return solver

    for name, method in METHODS.items():
        if method.solve:
            monkeypatch.setitem(METHODS, name, replace(method, solve=watched(method.solve)))
    return calls


def compressed(plan: Plan, tokens: Tensor, folder: Path, batch_tokens: int = 3 * LENGTH) -> list[LayerResult]:
    runs = StreamOptions(CPU, "device", folder, batch_tokens)
    return [result for _, result in compress_layers(plan, tokens, runs)]


# ---- the twin


def stock(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def inputs_of(model: Any, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs [windows, length, K] of these linears of a stock model, by hooks, float64."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args: seen.update({name: args[0].double()})

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def moments(windows: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """XᵀX / tokens and (X̃ - X)ᵀX / tokens of some windows [n, length, K]."""
    flat, wanted = windows.flatten(0, 1), dense.flatten(0, 1)
    return flat.T @ flat / len(flat), (wanted - flat).T @ flat / len(flat)


def assert_same_moments(
    made: Statistics, windows: Tensor, dense: Tensor, asymmetric: bool, diagonal: bool = False
) -> float:
    """Checks one set of statistics; gives the largest entry of the cross moments, as a share like CLOSE."""
    gram, cross = moments(windows, dense)
    share = gram.diagonal().sqrt()[:, None] * gram.diagonal().sqrt()
    assert made.tokens == windows.shape[0] * windows.shape[1]
    if diagonal:
        gram = gram.diagonal().diag()
    assert float(((made.gram.double() - gram).abs() / share).max()) < CLOSE
    assert (made.cross is not None) == asymmetric
    if made.cross is not None:
        assert float(((made.cross.double() - cross).abs() / share).max()) < CLOSE
    return float((cross.abs() / share).max())


def put_in_order(layer: Any, heads: Tensor, inner: Tensor) -> None:
    """Permute the channels within each value head, and those inside the MLP, of a stock layer: it computes the same."""
    size, attention = pico.HIDDEN // pico.HEADS, layer.self_attn
    made = [head * size + int(channel) for head in range(pico.KV_HEADS) for channel in heads[head]]
    shared = pico.HEADS // pico.KV_HEADS
    read = [head * size + int(channel) for head in range(pico.HEADS) for channel in heads[head // shared]]
    if attention.v_proj.bias is not None:
        attention.v_proj.bias.data = attention.v_proj.bias.data[made]
    attention.v_proj.weight.data = attention.v_proj.weight.data[made]
    attention.o_proj.weight.data = attention.o_proj.weight.data[:, read]
    for rows in (layer.mlp.gate_proj, layer.mlp.up_proj):
        rows.weight.data = rows.weight.data[inner]
    layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, inner]


def follow(
    source: Any,
    dense: Any,
    tokens: Tensor,
    results: list[LayerResult],
    shown: Shown,
    asymmetric: bool,
    diagonal: bool = False,
) -> float:
    """Go through the model with the engine's weights, linear after linear, and check all that the solvers were shown.

    Gives how far, at most, the compressed prefix moved what a linear is given.
    """
    held = SAMPLES // 8
    fitted = slice(None, SAMPLES - held)
    farthest, calls = 0.0, iter(shown)
    for layer, result in enumerate(results):
        if result.permutations:
            for model in (source, dense):
                put_in_order(model.model.layers[layer], result.permutations["heads"], result.permutations["inner"])
        for places in STAGES:
            names = [f"model.layers.{layer}.{place}" for place in places]
            before, wanted = inputs_of(source, names, tokens), inputs_of(dense, names, tokens)
            assert all(torch.equal(before[name], before[names[0]]) for name in names)
            if any(place in result.notes for place in places):
                one = next(calls)
                assert one.held is not None
                for made, windows in ((one, fitted), (one.held, slice(-held, None))):
                    seen = before[names[0]][windows], wanted[names[0]][windows]
                    farthest = max(farthest, assert_same_moments(made, *seen, asymmetric, diagonal))
            for place, name in zip(places, names, strict=True):
                if place in result.weights:
                    source.get_submodule(name).weight.data = numbers(result.weights[place])
    assert next(calls, None) is None
    return farthest


# ---- statistics


@pytest.mark.parametrize(
    ("kind", "batch_tokens"), [*((kind, 3 * LENGTH) for kind in KINDS), ("llama", 1), ("llama", 10**6)]
)
def test_solvers_are_shown_what_the_stock_model_shows_its_linears(
    tmp_path: Path, tokens: Tensor, shown: Shown, kind: str, batch_tokens: int
) -> None:
    """Behind layers, and linears of the same layer, that are compressed already; windows held out apart."""
    source = write_model(tmp_path / "source", kind)
    results = compressed(plan_for(source, method="obs", pattern="2:4"), tokens, tmp_path, batch_tokens)
    assert len(shown) == 4 * pico.LAYERS
    moved = follow(stock(source), stock(source), tokens, results, shown, asymmetric=True)
    assert moved > 0.1, "2:4 moves what the next linears are given, so the order in which they are solved matters"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_permuted_channels_are_shown_in_their_order(
    tmp_path: Path, tokens: Tensor, shown: Shown, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(PRESETS, "balanced", replace(PRESETS["balanced"], permute=True))
    source = write_model(tmp_path / "source", kind)
    results = compressed(plan_for(source, preset="balanced", pattern="2:4"), tokens, tmp_path)
    for result in results:
        assert not torch.equal(result.permutations["heads"][0], torch.arange(pico.HIDDEN // pico.HEADS))
        assert not torch.equal(result.permutations["inner"], torch.arange(pico.INNER))
    follow(stock(source), stock(source), tokens, results, shown, asymmetric=True)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_in_bfloat16_solvers_are_shown_nearly_the_same(
    tmp_path: Path, tokens: Tensor, shown: Shown, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Inputs are off by a few half steps of bfloat16 (2**-9 each), products of two of them by twice that, and codes may
    round the other way behind them. The matrices are float32 all the same: of what went in, nothing is lost."""
    source = write_model(tmp_path / "source", kind)
    seen: list[Tensor] = []
    real = Accumulator.add

    def add(self: Accumulator, inputs: Tensor, dense: Tensor | None) -> None:
        seen.append(inputs)
        real(self, inputs, dense)

    monkeypatch.setattr(Accumulator, "add", add)
    plan = plan_for(source, method="gptq", pattern="2:inf")
    next(compress_layers(plan, tokens, StreamOptions(CPU, "device", tmp_path, 10**6, torch.bfloat16)))
    reduced, inputs = shown[:4], seen[::2]
    shown.clear()
    next(compress_layers(plan, tokens, StreamOptions(CPU, "device", tmp_path, 10**6)))
    for one, exact, given in zip(reduced, shown, inputs, strict=True):
        assert given.dtype == torch.bfloat16
        share = exact.gram.diagonal().sqrt()[:, None] * exact.gram.diagonal().sqrt()
        assert 0 < float(((one.gram - exact.gram).abs() / share).max()) < 2**-5
        whole = given.double().T @ given.double() / len(given)
        assert float(((one.gram.double() - whole).abs() / share).max()) < CLOSE


def test_the_first_linears_see_the_dense_model(tmp_path: Path, tokens: Tensor, shown: Shown) -> None:
    compressed(plan_for(write_model(tmp_path / "source"), method="obs", pattern="2:4"), tokens, tmp_path)
    assert shown[0].cross is not None and not shown[0].cross.any()
    assert shown[0].held is not None and shown[0].held.cross is not None and not shown[0].held.cross.any()
    assert shown[1].cross is not None and shown[1].cross.any()


@pytest.mark.parametrize("method", ["wanda", "hessian", "gptq"])
def test_methods_that_do_not_ask_for_the_dense_model_are_not_shown_it(
    tmp_path: Path, tokens: Tensor, shown: Shown, method: str
) -> None:
    source = write_model(tmp_path / "source")
    pattern = "2:inf" if method == "gptq" else "2:6"
    results = compressed(plan_for(source, method=method, pattern=pattern, scheme="fp8"), tokens, tmp_path)
    diagonal = METHODS[method].diagonal
    follow(stock(source), stock(source), tokens, results, shown, asymmetric=False, diagonal=diagonal)


def test_mixed_choices_see_what_the_others_left(tmp_path: Path, tokens: Tensor, shown: Shown) -> None:
    """A kept layer, linears pruned by magnitude before calibrated ones, and siblings with methods of their own."""
    source = write_model(tmp_path / "source")
    rules = [
        {"match": "*.0.*", "keep": "true"},
        {"match": "*.1.self_attn.[qkv]_proj", "method": "magnitude"},
        {"match": "*.2.self_attn.k_proj", "method": "wanda"},
        {"match": "*.2.mlp.up_proj", "method": "magnitude"},
        {"match": "*.2.mlp.down_proj", "pattern": "2:4", "method": "alps"},
    ]
    results = compressed(plan_for(source, method="obs", pattern="2:6", rules=rules), tokens, tmp_path)
    assert not results[0].weights
    assert not {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} & results[1].notes.keys()
    assert len(shown) == 3 + 5  # k_proj is solved by itself
    assert shown[3] is shown[4]
    del shown[4]
    assert follow(stock(source), stock(source), tokens, results, shown, asymmetric=True) > 0.01


def test_a_source_of_codes_is_the_dense_model_that_it_serves(tmp_path: Path, tokens: Tensor, shown: Shown) -> None:
    source = write_tokenizer(pico.w8a8(tmp_path / "w8a8"))
    tensors = pico.read(source)
    served = {
        name: tensor.float() * tensors[f"{name}_scale"].float() if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith("_scale")
    }
    twin = pico.write(tmp_path / "twin", served)
    results = compressed(plan_for(source, method="obs", pattern="2:4", scheme=None), tokens, tmp_path)
    follow(stock(twin), stock(twin), tokens, results, shown, asymmetric=True)


def test_sliding_windows_are_a_matter_of_each_layer(tmp_path: Path, tokens: Tensor, shown: Shown) -> None:
    """What would be seen without them is something else, so the twin's agreement above says something."""
    grams = []
    for window in (6, LENGTH):
        source = write_model(tmp_path / f"{window}", "qwen2, two layers sliding", sliding_window=window)
        compressed(plan_for(source, method="wanda", pattern="2:inf"), tokens, tmp_path)
        grams.append([one.gram for one in shown])
        shown.clear()
    first, sliding = ([float((a - b).norm() / a.norm()) for a, b in zip(*grams, strict=True)][i] for i in (1, 5))
    assert first == 0 and sliding > 0.01


@pytest.mark.parametrize(("windows", "held"), [(2, 1), (7, 1), (8, 1), (15, 1), (16, 2), (128, 16), (1024, 32)])
def test_one_window_in_eight_is_held_out_but_not_more_than_enough(windows: int, held: int) -> None:
    fitted, rest = held_out(windows)
    assert fitted.tolist() == list(range(windows - held)) and rest.tolist() == list(range(windows - held, windows))


@pytest.mark.parametrize("method", ["wanda", "hessian", "gptq", "obs", "alps", "balanced, permuted"])
def test_what_is_held_out_changes_no_weight(
    tmp_path: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """But by the number of refit steps, which is the same here."""
    monkeypatch.setitem(PRESETS, "balanced", replace(PRESETS["balanced"], permute=True))
    monkeypatch.setattr(solvers, "best_step_count", lambda *_: 3)
    words = {"preset": "balanced"} if method not in METHODS else {"method": method}
    plan = plan_for(write_model(tmp_path / "source"), pattern="2:inf" if method == "gptq" else "2:4", **words)
    other = tokens.clone()
    other[held_out(len(tokens))[1]] = 7
    found = [compressed(plan, some, tmp_path) for some in (tokens, other)]
    for one, again in zip(*found, strict=True):
        assert one.weights.keys() == again.weights.keys() and bool(one.permutations) == (method not in METHODS)
        assert all(torch.equal(numbers(one.weights[place]), numbers(again.weights[place])) for place in one.weights)
        assert all(torch.equal(order, again.permutations[part]) for part, order in one.permutations.items())
        assert (one.notes, one.activation_errors) == (again.notes, again.activation_errors)


def test_a_held_out_window_that_overflows_is_refused(tmp_path: Path, tokens: Tensor) -> None:
    """It could choose nothing. The word is in no other window."""
    tensors = weights()
    tensors["model.embed_tokens.weight"][7] = torch.inf
    source = write_tokenizer(pico.write(tmp_path / "source", tensors))
    tokens = tokens.where(tokens != 7, 8)
    tokens[-1, 3] = 7
    with pytest.raises(InputError, match=r"layer 0: the input of self_attn\.q_proj is not finite"):
        compressed(plan_for(source, method="obs", pattern="2:4"), tokens, tmp_path)


# ---- where hidden states lie


def test_where_hidden_states_lie_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "quality", quality(2, 2))
    source, text = write_model(tmp_path / "source", num_hidden_layers=2), write_text(tmp_path / "text.jsonl")
    plan = plan_for(source, text, preset="quality", pattern="2:4")
    outs = []
    for place in PLACES:
        out = tmp_path / place
        convert(plan, out, settings=RunSettings(keep_on=place, batch_tokens=2 * LENGTH))
        outs.append(pico.files(out))
    assert outs[0] == outs[1] == outs[2] and len(outs[0]) > 5


def test_hidden_states_on_disk_are_files_that_go_with_the_job(tmp_path: Path, tokens: Tensor) -> None:
    plan = plan_for(write_model(tmp_path / "source"), method="obs")
    layers = compress_layers(plan, tokens, StreamOptions(CPU, "disk", tmp_path / "hidden", 3 * LENGTH))
    next(layers)
    sizes = sorted(path.stat().st_size for path in (tmp_path / "hidden").glob("hidden-*"))
    assert sizes == [windows * LENGTH * pico.HIDDEN * 4 for windows in (1, 2, 3, 3)]


# ---- which tokens


def twin_tokens(model: Path, text: Path, samples: int, length: int, seed: int) -> Tensor:
    """The protocol by hand: 0 document 1 0 document 1 …, cut, permuted, the first ones."""
    tokenizer, row = Tokenizer.from_file(str(model / "tokenizer.json")), []
    for line in text.read_text().splitlines():
        row += [0, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids, 1]
    windows = [row[start : start + length] for start in range(0, len(row) - length + 1, length)]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.tensor([windows[number] for number in order[:samples]])


@pytest.mark.parametrize(("samples", "length", "seed"), [(128, 512, 0), (7, 33, 0), (7, 33, 1), (300, 64, 12)])
def test_tokens_are_windows_of_the_text_drawn_by_the_seed(samples: int, length: int, seed: int) -> None:
    text = DEMO_TEXT / "calibration.jsonl"
    drawn = calibration_tokens(Calibration(str(text), samples, length, seed), Checkpoint.open(DEMO))
    assert torch.equal(drawn, twin_tokens(DEMO, text, samples, length, seed))
    assert not (drawn == json.loads((DEMO / "config.json").read_text())["pad_token_id"]).any()


def test_windows_are_as_long_as_the_model_takes_but_not_longer_than_usual(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl", documents=300)
    for longest, length in ((128, 128), (4096, 2048)):
        source = Checkpoint.open(write_model(tmp_path / f"{longest}", max_position_embeddings=longest))
        drawn = calibration_tokens(Calibration(str(text), 4), source)
        assert torch.equal(drawn, twin_tokens(source.path, text, 4, length, 0))


def test_of_a_data_set_sixteen_times_as_many_windows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    text = write_text(tmp_path / "text.jsonl", documents=300)
    read: list[int] = []

    def rows(*_: object, **__: object) -> Any:
        for number, line in enumerate(text.read_text().splitlines()):
            read.append(number)
            yield json.loads(line)

    monkeypatch.setattr(datasets, "load_dataset", rows)
    source = Checkpoint.open(write_model(tmp_path / "source"))
    drawn = calibration_tokens(Calibration("org/set:train", samples=3, length=64), source)
    first = tmp_path / "first.jsonl"
    first.write_text("".join(text.read_text().splitlines(keepends=True)[: len(read)]))
    flat = twin_tokens(source.path, first, 10**6, 64, 0)
    assert len(read) < 300 and len(flat) in (48, 49)  # the document that completes the last window may go on
    row = [token for line in first.read_text().splitlines() for token in [0, *_ids(source.path, line), 1]]
    windows = torch.tensor(row[: 48 * 64]).view(48, 64)
    assert torch.equal(drawn, windows[torch.randperm(48, generator=torch.Generator().manual_seed(0))[:3]])


def _ids(model: Path, line: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids


def test_exactly_the_tokens_drawn_are_counted_and_nothing_is_padded(tmp_path: Path, shown: Shown) -> None:
    """Ragged batches: eight windows are fitted in batches of three, the ninth is held out."""
    source, text = write_model(tmp_path / "source"), write_text(tmp_path / "text.jsonl")
    convert(
        plan_for(source, text, method="obs"),
        tmp_path / "out",
        settings=RunSettings(batch_tokens=3 * LENGTH, precision="float32"),
    )
    assert [(one.tokens, one.held and one.held.tokens) for one in shown] == [(8 * LENGTH, LENGTH)] * len(shown)
    drawn = twin_tokens(source, text, SAMPLES, LENGTH, 0)
    embedded = weights()["model.embed_tokens.weight"].double()[drawn]
    normed = embedded * (embedded.square().mean(-1, keepdim=True) + pico.CONFIG["rms_norm_eps"]).rsqrt()
    normed *= weights()["model.layers.0.input_layernorm.weight"].double()
    assert_same_moments(shown[0], normed[:8], normed[:8], asymmetric=True)
    assert shown[0].held is not None
    assert_same_moments(shown[0].held, normed[8:], normed[8:], asymmetric=True)
