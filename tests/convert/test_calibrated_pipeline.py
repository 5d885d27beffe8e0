"""Calibrated conversions as a whole: every method, scheme and pattern; what they gain; what verify says; bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.calibrate import stream
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models.load import load_model, load_tokenizer
from slideconvert.plan.presets import PRESETS
from slideconvert.prune import METHODS
from slideconvert.prune.statistics import Statistics
from slideconvert.recover.run import Run
from slideconvert.report import Report
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences
from tests.conftest import Cli
from tests.convert.test_bad_input import refused
from tests.convert.test_verify import edit_tensors
from tests.helpers import pico
from tests.helpers.calibrated import (
    DEMO,
    DEMO_TEXT,
    FLAGS,
    LENGTH,
    SAMPLES,
    calibrated_by,
    plan_for,
    quality,
    weights,
    write_model,
    write_text,
    write_tokenizer,
)
from tests.helpers.matrices import UNGROUPED, raw

PATTERNS = ("2:4", "2:6", "2:8", "2:10", "2:16", "2:inf")
RULES = [{"match": f"*.layers.{layer}.*", "pattern": pattern} for layer, pattern in enumerate(PATTERNS)]
"""A model with a layer for each pattern."""
Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("layered") / "source", num_hidden_layers=len(PATTERNS))


@pytest.fixture(scope="module")
def sparse(layered: Path) -> Path:
    """The layered model pruned by magnitude, bfloat16."""
    out = layered.parent / "sparse"
    convert(plan_for(layered, method="magnitude", scheme="bf16", rules=RULES), out)
    return out


def told(out: Path) -> dict[str, dict[str, Any]]:
    """The linears of report.json by name."""
    return {layer["name"]: layer for layer in json.loads((out / "report.json").read_text())["layers"]}


def recorded(out: Path) -> dict[str, dict[str, Any]]:
    return json.loads((out / "config.json").read_text())["slidesparse_config"]["layers"]


def assert_pattern(stored: Tensor, pattern: str) -> None:
    """At most L - 2 of each group are not zero, and zeros are all-zero bits; groups cut from each row anew."""
    if pattern == "2:inf":
        return
    length = int(pattern[2:])
    bits = raw(stored)
    columns = np.arange(stored.shape[1])
    for begin in range(0, stored.shape[1], length):
        taken = (bits[:, (columns >= begin) & (columns < begin + length)] != 0).sum(1)
        assert taken.max() <= length - 2


# ---- every method, scheme and pattern


@pytest.mark.parametrize("scheme", UNGROUPED)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "hessian", "obs", "alps"])
def test_every_method_prunes_to_every_pattern_in_every_scheme(
    cli: Cli, tmp_path: Path, layered: Path, text: Path, method: str, scheme: str
) -> None:
    out = tmp_path / "out"
    convert(plan_for(layered, text, method=method, scheme=scheme, rules=RULES), out)
    assert cli("verify", out, "--source", layered, "-q").code == 0
    tensors, linears, entries = pico.read(out), told(out), recorded(out)
    for name, linear in linears.items():
        pattern = PATTERNS[linear["layer"]]
        assert_pattern(tensors[f"{name}.weight"], pattern)
        finds_codes = METHODS[method].calibrated and scheme != "bf16"
        expected = method if pattern != "2:inf" or finds_codes else ""
        assert (linear["method"], entries[name].get("method", "")) == (expected, expected)
        assert (linear["pattern"], entries[name]["pattern"]) == (pattern, pattern)
        assert (linear["output_error"] is not None) == METHODS[method].calibrated
        if linear["output_error"] is not None:
            assert (linear["output_error"] > 0) == bool(expected) and linear["output_error"] < 1
        assert linear["notes"] == []


@pytest.mark.parametrize(
    ("preset", "methods"),
    [
        ("fast", ["wanda"] * 6),
        ("balanced", ["alps", "alps", "obs", "obs", "obs", "obs"]),
        ("quality", ["alps", "alps", "obs", "obs", "obs", "obs"]),
    ],
)
def test_presets_choose_the_method_by_the_pattern(
    tmp_path: Path, layered: Path, text: Path, brief: None, preset: str, methods: list[str]
) -> None:
    convert(plan_for(layered, text, preset=preset, rules=RULES), tmp_path / "out")
    linears = told(tmp_path / "out")
    assert [linears[f"model.layers.{layer}.mlp.down_proj"]["method"] for layer in range(6)] == methods
    assert max(linear["error"] for linear in linears.values()) < 0.7, "channels in the order of what is compared"
    recipe = json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse_config"]["recipe"]
    assert recipe["preset"] == preset
    assert recipe["calibration"] == {"text": text.name, "samples": SAMPLES, "length": LENGTH, "seed": 0}


def test_texts_are_named_without_their_folders(cli: Cli, tmp_path: Path, text: Path) -> None:
    """In all that is published; --resume knows the finished output again, also one of an earlier version, which names
    the whole path."""
    source, out = write_model(tmp_path / "source", num_hidden_layers=1), tmp_path / "out"
    words = ("convert", source, out, "--pattern", "2_4", "--method", "wanda", *FLAGS, "--calibration")
    assert cli(*words, text, "-q").code == 0
    assert not [path for path in out.rglob("*") if path.is_file() and str(text.parent).encode() in path.read_bytes()]
    assert json.loads((out / "report.json").read_text())["recipe"]["calibration"]["text"] == text.name
    assert cli("verify", out, "--source", source, "-q").code == 0
    assert "already finished" in cli(*words, text, "--resume").out
    config = json.loads((out / "config.json").read_text())
    config["slidesparse_config"]["recipe"]["calibration"]["text"] = str(text)
    (out / "config.json").write_text(json.dumps(config))
    assert "already finished" in cli(*words, text, "--resume").out
    refused = cli(*words, text.with_name("other.jsonl"), "--resume")
    assert refused.code == 2 and "is the finished output of other settings: recipe was" in refused.err


@pytest.mark.parametrize("scheme", UNGROUPED)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_methods_that_only_quantize_keep_the_mask_of_the_source(
    cli: Cli, tmp_path: Path, sparse: Path, text: Path, method: str, scheme: str
) -> None:
    out = tmp_path / "out"
    convert(plan_for(sparse, text, method=method, scheme=scheme, pattern=None), out)
    assert cli("verify", out, "--source", sparse, "-q").code == 0
    before, after, linears, entries = pico.read(sparse), pico.read(out), told(out), recorded(out)
    moved = []
    for name, linear in linears.items():
        pattern, key = PATTERNS[linear["layer"]], f"{name}.weight"
        pruned = "magnitude" if pattern != "2:inf" else ""
        assert_pattern(after[key], pattern)
        assert not raw(after[key])[raw(before[key]) == 0].any()
        finds_codes = method == "gptq" and scheme != "bf16"
        assert (linear["method"], linear["pattern"]) == (method if finds_codes else "", pattern)
        assert (entries[name].get("method", ""), entries[name]["pattern"]) == (
            method if finds_codes else pruned,
            pattern,
        )
        if scheme == "bf16":
            assert torch.equal(before[key], after[key])
        else:
            scaled = before[key].float() / after[f"{name}.weight_scale"]
            nearest = scaled.round() if scheme == "int8" else scaled.to(after[key].dtype).float()
            moved.append(float((after[key].float() - nearest).abs().max()))
    assert scheme == "bf16" or (max(moved) > 0) == (method == "gptq")


@pytest.mark.parametrize("method", ["wanda", "hessian", "obs", "alps", "gptq"])
def test_codes_of_other_tools_are_solved_again(cli: Cli, tmp_path: Path, text: Path, method: str) -> None:
    """Scales are found again with the codes, float32; gptq finds none better than the codes that are there."""
    source, out = write_tokenizer(pico.w8a8(tmp_path / "w8a8")), tmp_path / "out"
    pattern = "2:inf" if method == "gptq" else "2:8"
    convert(plan_for(source, text, method=method, scheme=None, pattern=pattern), out)
    assert cli("verify", out, "--source", source, "-q").code == 0
    assert cli("slide", out, tmp_path / "slid", "-q").code == 0
    tensors = pico.read(out)
    for name, linear in told(out).items():
        assert_pattern(tensors[f"{name}.weight"], pattern)
        assert tensors[f"{name}.weight_scale"].dtype == torch.float32
        assert linear["method"] == method and "pruned_on" not in recorded(out)[name]
        assert linear["error"] < (0.005 if method == "gptq" else 0.5)


@pytest.mark.parametrize("layout", ["dense", "slide"])
def test_choices_may_differ_from_linear_to_linear(
    cli: Cli, tmp_path: Path, model: Path, text: Path, layout: str
) -> None:
    """Siblings agree on scheme and pattern; methods are each linear's own, and a kept layer stays byte for byte."""
    rules = [
        {"match": "*.0.self_attn.q_proj", "method": "magnitude"},
        {"match": "*.0.self_attn.k_proj", "method": "wanda"},
        {"match": "*.0.mlp.down_proj", "pattern": "2:4", "method": "alps"},
        {"match": "*.1.*", "keep": "true"},
        {"match": "*.2.self_attn.*", "method": "magnitude", "scheme": "fp8"},
    ]
    out = tmp_path / "out"
    convert(plan_for(model, text, method="obs", pattern="2:6", layout=layout, rules=rules), out)
    assert cli("verify", out, "--source", model, "-q").code == 0
    said = {name: (linear["method"], linear["scheme"], linear["pattern"]) for name, linear in told(out).items()}
    assert said["model.layers.0.self_attn.q_proj"] == ("magnitude", "int8", "2:6")
    assert said["model.layers.0.self_attn.k_proj"] == ("wanda", "int8", "2:6")
    assert said["model.layers.0.self_attn.v_proj"] == ("obs", "int8", "2:6")
    assert said["model.layers.0.mlp.down_proj"] == ("alps", "int8", "2:4")
    assert said["model.layers.2.self_attn.o_proj"] == ("magnitude", "fp8", "2:6")
    assert said["model.layers.2.mlp.up_proj"] == ("obs", "int8", "2:6")
    kept = [name for name, linear in told(out).items() if linear["kept"]]
    before, after = pico.read(model), pico.read(out)
    assert len(kept) == 7 and all(torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]) for name in kept)
    assert not [name for name in kept if told(out)[name]["output_error"] is not None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("words", [{"method": "obs"}, {"preset": "quality"}], ids=str)
def test_other_float_sources_keep_their_dtype_when_only_pruned(
    cli: Cli, tmp_path: Path, brief: None, dtype: torch.dtype, words: dict[str, str]
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in weights(layers=1).items()}
    source = write_tokenizer(pico.write(tmp_path / "source", tensors, {"num_hidden_layers": 1}))
    plan = plan_for(source, write_text(tmp_path / "text.jsonl"), scheme=None, pattern="2:4", **words)
    convert(plan, tmp_path / "out")
    assert cli("verify", tmp_path / "out", "--source", source, "-q").code == 0
    assert {tensor.dtype for tensor in pico.read(tmp_path / "out").values()} == {dtype}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preset quality with few epochs."""
    monkeypatch.setitem(PRESETS, "quality", quality(2, 2))


QUALITY: dict[str, dict[str, Any]] = {
    "a kept layer": {"rules": [{"match": "*.1.*", "keep": "true"}]},
    "magnitude": {"method": "magnitude"},
    "a layer that is not pruned": {"rules": [{"match": "*.1.*", "scheme": "bf16", "pattern": "2:inf"}]},
    "a layer rounded to nearest": {"rules": [{"match": "*.1.*", "method": "rtn", "pattern": "2:inf"}]},
}


@pytest.mark.parametrize("case", QUALITY)
def test_quality_works_with_every_choice(cli: Cli, tmp_path: Path, short_demo: Path, brief: None, case: str) -> None:
    """On the demo model, where training helps, so that weights do move."""
    rules = QUALITY[case]
    plan = plan_for(short_demo, DEMO_TEXT / "calibration.jsonl", 32, 32, preset="quality", pattern="2:4", **rules)
    convert(plan, tmp_path / "out")
    assert cli("verify", tmp_path / "out", "--source", short_demo, "-q").code == 0


def test_quality_trains_codes_of_others_pruned_by_magnitude(cli: Cli, tmp_path: Path, text: Path, brief: None) -> None:
    source = write_tokenizer(pico.w8a8(tmp_path / "w8a8"))
    convert(plan_for(source, text, scheme=None, preset="quality", method="magnitude"), tmp_path / "out")
    assert cli("verify", tmp_path / "out", "--source", source, "-q").code == 0


# ---- what they gain


@pytest.fixture(scope="module")
def gains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, float]]:
    """2:4, bfloat16: the demo model and its perplexity on text that was not calibrated with, by method."""
    folder = tmp_path_factory.mktemp("gains")
    tokenizer, text = load_tokenizer(Checkpoint.open(DEMO)), str(DEMO_TEXT / "evaluation.jsonl")
    windows = token_sequences(tokenizer, read_documents(text), length=128, most=32)
    found = {}
    for word in ("magnitude", "wanda", "hessian", "obs", "alps", "quality"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(PRESETS, "quality", quality(2, 2))
            words = {"preset": word} if word in PRESETS else {"method": word}
            plan = plan_for(DEMO, DEMO_TEXT / "calibration.jsonl", 32, 128, scheme="bf16", pattern="2:4", **words)
        convert(plan, folder / word)
        found[word] = folder / word, perplexity(load_model(Checkpoint.open(folder / word)), windows)
    return found


@pytest.mark.parametrize(
    ("better", "worse", "share"),
    [
        ("wanda", "magnitude", 0.95),
        ("hessian", "wanda", 0.9),
        ("obs", "hessian", 0.95),
        ("alps", "obs", 0.995),
        ("quality", "alps", 0.99),
    ],
)
def test_more_work_gives_a_better_model(
    gains: dict[str, tuple[Path, float]], better: str, worse: str, share: float
) -> None:
    """On the trained demo model, 4096 tokens to calibrate: 24.0, 20.9, 17.7, 16.0, 15.4, 14.2; dense 11.1."""
    assert gains[better][1] < share * gains[worse][1]


# ---- what is told


@pytest.mark.parametrize("method", ["wanda", "hessian", "obs", "alps"])
@pytest.mark.parametrize("repeated", [True, False], ids=["one word", "few tokens"])
def test_fewer_tokens_than_columns_are_enough(
    cli: Cli, tmp_path: Path, model: Path, method: str, repeated: bool
) -> None:
    """Gram matrices of rank 1 (the same word over and over, the same input in the first layer) and of rank 8."""
    (tmp_path / "text.txt").write_text("w5 " * 200 if repeated else " ".join(f"w{number}" for number in range(90)))
    plan = plan_for(model, tmp_path / "text.txt", 2, 4, method=method, pattern="2:4")
    convert(plan, tmp_path / "out")
    assert cli("verify", tmp_path / "out", "--source", model, "-q").code == 0


@pytest.fixture
def indefinite(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Gives the Gram matrices of layer 1 a direction of negative energy, as a share of the mean diagonal."""
    real = stream.Streams.statistics

    def spoil(share: float) -> None:
        def statistics(self: stream.Streams, group: int, *, diagonal: bool = False) -> Statistics:
            found = real(self, group, diagonal=diagonal)
            if self.number == 1:
                energies, directions = torch.linalg.eigh(found.gram)
                taken = energies[0] + share * found.gram.diagonal().mean()
                found.gram.sub_(taken * directions[:, :1] * directions[:, 0])
            return found

        monkeypatch.setattr(stream.Streams, "statistics", statistics)

    return spoil


@pytest.mark.parametrize("method", ["hessian", "obs", "alps", "gptq"])
def test_increased_damping_is_reported(
    tmp_path: Path, model: Path, text: Path, indefinite: Callable[[float], None], method: str
) -> None:
    indefinite(0.05)
    pattern = "2:inf" if method == "gptq" else "2:4"
    convert(plan_for(model, text, method=method, pattern=pattern), tmp_path / "out")
    for linear in told(tmp_path / "out").values():
        assert len(linear["notes"]) == (linear["layer"] == 1)
    note = told(tmp_path / "out")[DOWN]["notes"][0]
    assert "not positive definite with a damping of 0.01 of the mean diagonal" in note
    for name in ("report.html", "README.md"):
        assert "not positive definite" in (tmp_path / "out" / name).read_text()


def test_what_no_damping_helps_is_an_error_that_names_the_layer(
    cli: Cli, tmp_path: Path, model: Path, text: Path, indefinite: Callable[[float], None]
) -> None:
    indefinite(50.0)
    outcome = cli("convert", model, tmp_path / "out", "--method", "obs", "--calibration", text, *FLAGS, "-q")
    assert outcome.code == 1 and "model.layers.1.self_attn.q_proj" in outcome.err and "samples" in outcome.err


def test_time_of_each_stage_is_reported(cli: Cli, tmp_path: Path, model: Path, text: Path, brief: None) -> None:
    words = ("convert", model, tmp_path / "out", "--preset", "quality", "--calibration", text, "--samples", SAMPLES)
    told = json.loads(cli(*words, "--length", LENGTH, "--json").out)
    stages = [
        "import",
        "plan",
        "text",
        "check",
        "smooth",
        "calibrate",
        "targets",
        "train",
        "finish",
        "verify",
        "compare",
    ]
    assert list(told["stages"]) == stages
    seconds = [stage["seconds"] for stage in told["stages"].values()]
    assert sum(seconds) == pytest.approx(told["seconds"], abs=0.001 * len(seconds)), "every second has a name"
    assert not any(stage["device_bytes"] for stage in told["stages"].values()), "no GPU has been used"


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_sparsify_takes_methods_that_prune(cli: Cli, tmp_path: Path, model: Path, method: str) -> None:
    outcome = cli("sparsify", model, tmp_path / "out", "--method", method)
    assert outcome.code == 2 and f"unknown method '{method}'" in outcome.err and "obs" in outcome.err
    assert not (tmp_path / "out").exists()


def test_training_is_reported_per_part(tmp_path: Path, model: Path, text: Path, brief: None) -> None:
    convert(plan_for(model, text, preset="quality", pattern="2:4"), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    curves = {part["part"]: part for part in report["training"]}
    assert list(curves) == ["layer 0", "layer 1", "layer 2", "end to end"]
    for curve in curves.values():
        assert len(curve["losses"]) == 3
        assert curve["losses"][curve["best"]] == min(curve["losses"]) and curve["skipped"] == 0


def test_restarts_are_reported(tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as long as the weights lower no loss, nor do steps half as long: training is undone."""
    preset = quality(1, 0)
    far = replace(preset.recovery, block_rate=100.0, retries=1)
    monkeypatch.setitem(PRESETS, "quality", replace(preset, recovery=far))
    convert(plan_for(model, text, preset="quality", pattern="2:4"), tmp_path / "out")
    report = Report.from_json((tmp_path / "out" / "report.json").read_text())
    assert [(part.best, part.restarts) for part in report.training] == [(0, 1)] * 3
    shown = (tmp_path / "out" / "report.html").read_text()
    assert shown.count('<td class="number">0 of 1</td><td class="number">1</td>') == 3


def test_training_that_overflows_is_reported_in_strict_json(
    tmp_path: Path, model: Path, text: Path, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second held-out loss of each training is not finite."""
    real, calls = Run._mean, 0

    def mean(*words: Any) -> float:
        nonlocal calls
        calls += 1
        return math.inf if calls % 3 == 2 else real(*words)

    def strict(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    monkeypatch.setattr(Run, "_mean", mean)
    convert(plan_for(model, text, preset="quality", pattern="2:4"), tmp_path / "out")
    written = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(written, parse_constant=strict)
    assert [len(part["losses"]) for part in report["training"]] == [3, 3, 3, 3]
    assert Report.from_json(written).training[0].losses[1] is None


def test_reported_errors_are_those_of_the_stored_weights(gains: dict[str, tuple[Path, float]]) -> None:
    """The output error of the first linears, whose input is known from the embedding alone, on the held-out sequences,
    the last four; after training end to end as well. Float32 sums against float64 ones."""
    source = pico.read(DEMO)
    embedded = source["model.embed_tokens.weight"].double()[held_out_windows()].flatten(0, 1)
    inputs = embedded * (embedded.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    inputs *= source["model.layers.0.input_layernorm.weight"].double()
    for word in ("wanda", "hessian", "obs", "alps", "quality"):
        out = gains[word][0]
        for part in "qk":  # preset quality permutes the rows of v_proj
            name = f"model.layers.0.self_attn.{part}_proj"
            before, after = source[f"{name}.weight"].double(), pico.read(out)[f"{name}.weight"].double()
            expected = float((inputs @ (after - before).T).norm() / (inputs @ before.T).norm())
            assert told(out)[name]["output_error"] == pytest.approx(expected, rel=1e-4), word
        assert all(linear["output_error"] > 0 for linear in told(out).values())


def held_out_windows() -> torch.Tensor:
    """The last four of the 32 sequences that `gains` draws, which no method fits."""
    tokenizer, text = load_tokenizer(Checkpoint.open(DEMO)), str(DEMO_TEXT / "calibration.jsonl")
    windows = token_sequences(tokenizer, read_documents(text), 128)
    return windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[28:32]]


@pytest.mark.parametrize("word", ["wanda", "quality"])
def test_held_out_figures_are_those_of_whole_models(gains: dict[str, tuple[Path, float]], word: str) -> None:
    """transformers runs source and output whole, and torch's own KL divergence compares them in float64."""
    out, tokens = gains[word][0], held_out_windows()
    found = json.loads((out / "report.json").read_text())["held_out"]
    runs = []
    for folder in (DEMO, out):
        model = load_model(Checkpoint.open(folder), activations="float")
        with torch.no_grad():
            runs.append(model(tokens, output_hidden_states=True, use_cache=False))
    p, q = (run.logits[:, :-1].double().log_softmax(-1) for run in runs)
    kl = (p.exp() * (p - q)).sum(-1).mean(-1)  # of each sequence
    losses = [-one.gather(-1, tokens[:, 1:, None]).mean() for one in (p, q)]
    # Those behind the last layer are normalized in transformers, so that they are not compared.
    states = [[state.double() for state in run.hidden_states[1:-1]] for run in runs]
    layers = [float((ours - theirs).norm() / theirs.norm()) for theirs, ours in zip(*states, strict=True)]
    assert (found["sequences"], found["length"]) == (4, 128)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["kl_stderr"] == pytest.approx(float(kl.std() / 2), rel=1e-3)
    assert found["source_perplexity"] == pytest.approx(float(losses[0].exp()), rel=1e-5)
    assert found["output_perplexity"] == pytest.approx(float(losses[1].exp()), rel=1e-5)
    assert found["layer_errors"][:-1] == pytest.approx(layers, rel=1e-4)


def test_the_headline_ranks_methods_as_perplexity_does(gains: dict[str, tuple[Path, float]]) -> None:
    """The change of the weights ranks the best method last."""
    order = ["wanda", "hessian", "obs", "alps", "quality"]
    reports = {word: json.loads((gains[word][0] / "report.json").read_text()) for word in order}
    kl = [reports[word]["held_out"]["kl"] for word in order]
    changes = [max(linear["error"] for linear in reports[word]["layers"]) for word in order]
    assert kl == sorted(kl, reverse=True) and changes[0] < changes[-1]


# ---- verify


@pytest.fixture
def calibrated(model: Path, text: Path, tmp_path: Path) -> Path:
    convert(plan_for(model, text, method="obs", pattern="2:6"), tmp_path / "calibrated")
    return tmp_path / "calibrated"


def swap(tensors: dict[str, Tensor]) -> None:
    other = Q.replace("layers.1", "layers.2")
    for part in ("weight", "weight_scale"):
        tensors[f"{Q}.{part}"], tensors[f"{other}.{part}"] = tensors[f"{other}.{part}"], tensors[f"{Q}.{part}"]


FAULTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "two linears changed places": swap,
    "rows in another order": lambda tensors: tensors.update({f"{Q}.weight": tensors[f"{Q}.weight"].flip(0)}),
    "signs turned": lambda tensors: tensors[f"{Q}.weight"].neg_(),
    "all zeros": lambda tensors: tensors[f"{Q}.weight"].zero_(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_linear_of_the_same_shape_is_found(cli: Cli, model: Path, calibrated: Path, fault: str) -> None:
    assert cli("verify", calibrated, "--source", model, "-q").code == 0
    edit_tensors(calibrated, FAULTS[fault])
    outcome = cli("verify", calibrated, "--source", model, "-q")
    assert outcome.code == 1 and Q in outcome.err and "not the same linear" in outcome.err


def test_weights_may_compensate_by_more_than_the_norm_of_the_source(cli: Cli, model: Path, calibrated: Path) -> None:
    """On little text, rows that write a large channel do: the sum of a linear's changes is larger than the linear."""

    def compensate(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.weight_scale"][:4] *= 8

    edit_tensors(calibrated, compensate)
    done = cli("verify", calibrated, "--source", model, "--json")
    assert done.code == 0, done.err
    errors = {row["name"]: row["error"] for row in json.loads(done.out)["linears"]}
    assert errors[Q] > 1


def test_exchanged_permuted_linears_are_found(cli: Cli, tmp_path: Path, model: Path, text: Path, brief: None) -> None:
    """Preset quality permutes channels, so weights stand elsewhere than in the source; which ones they are is known."""
    out, other = tmp_path / "out", DOWN.replace("layers.1", "layers.2")
    convert(plan_for(model, text, preset="quality"), out)

    def exchange(tensors: dict[str, Tensor]) -> None:
        for part in ("weight", "weight_scale"):
            one, two = f"{DOWN}.{part}", f"{other}.{part}"
            tensors[one], tensors[two] = tensors[two], tensors[one]

    edit_tensors(out, exchange)
    outcome = cli("verify", out, "--source", model, "-q")
    assert outcome.code == 1 and DOWN in outcome.err and "not the same linear" in outcome.err


def add_one(name: str) -> Callable[[dict[str, Tensor]], None]:
    """One code of a linear changed by one, where it leaves no zero."""

    def change(tensors: dict[str, Tensor]) -> None:
        codes = tensors[f"{name}.weight"]
        row, column = (codes.abs().int() > 5).nonzero()[7].tolist()
        codes[row, column] -= codes[row, column].sign()

    return change


def test_the_other_layout_is_still_checked_exactly(cli: Cli, model: Path, calibrated: Path, tmp_path: Path) -> None:
    slid, back = tmp_path / "slid", tmp_path / "back"
    assert cli("relayout", calibrated, slid, "--layout", "slide", "-q").code == 0
    assert cli("relayout", slid, back, "--layout", "dense", "-q").code == 0
    assert (back / "model.safetensors").read_bytes() == (calibrated / "model.safetensors").read_bytes()
    for out in (slid, back):
        assert cli("verify", out, "--source", model, "-q").code == 0
        assert cli("verify", out, "--source", calibrated, "-q").code == 0
    edit_tensors(back, add_one(DOWN))
    assert cli("verify", back, "--source", model, "-q").code == 0, "calibration may have made this code"
    outcome = cli("verify", back, "--source", calibrated, "-q")
    assert outcome.code == 1 and DOWN in outcome.err and "more than rounding" in outcome.err


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_sparsify_quantize_slide_with_calibration(
    cli: Cli, tmp_path: Path, model: Path, text: Path, method: str
) -> None:
    sparse, quantized, slid = tmp_path / "sparse", tmp_path / "quantized", tmp_path / "slid"
    calibration = ("--calibration", text, *FLAGS, "-q")
    assert cli("sparsify", model, sparse, "--pattern", "2_6", "--method", "obs", *calibration).code == 0
    assert cli("quantize", sparse, quantized, *calibrated_by(text, "--method", method), "-q").code == 0
    assert cli("slide", quantized, slid, "-q").code == 0
    for out, source in ((sparse, model), (quantized, sparse), (slid, quantized), (slid, model)):
        assert cli("verify", out, "--source", source, "-q").code == 0
    for name, entry in recorded(slid).items():
        assert (entry["pattern"], entry["method"]) == ("2:6", "obs" if method == "rtn" else "gptq")
        kept = pico.read(sparse)[f"{name}.weight"] != 0
        assert not pico.read(quantized)[f"{name}.weight"][~kept].any()
    edit_tensors(quantized, add_one(Q))
    assert cli("verify", quantized, "--source", sparse, "-q").code == (1 if method == "rtn" else 0)


@pytest.mark.parametrize("words", [("--method", "obs"), ()], ids=["obs", "the presets' methods"])
def test_a_sparsified_model_may_be_converted_by_the_same_method(
    cli: Cli, tmp_path: Path, model: Path, text: Path, words: tuple[str, ...]
) -> None:
    calibration = (*words, "--calibration", text, *FLAGS, "-q")
    assert cli("sparsify", model, tmp_path / "sparse", *calibration).code == 0
    assert cli("convert", tmp_path / "sparse", tmp_path / "out", *calibration).code == 0
    assert cli("verify", tmp_path / "out", "--source", tmp_path / "sparse", "-q").code == 0


# ---- bad input


def spoiled(name: str, change: Callable[[Tensor], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = weights()
        change(tensors[name])
        pico.write(folder, tensors)

    return spoil


def untouched(_: Path) -> None:
    """The source is sound; what is asked for is not."""


FULL = f"--samples {SAMPLES} --length {LENGTH} --calibration"
BAD: dict[str, tuple[Callable[[Path], Any], str, tuple[str, ...]]] = {
    "empty text": (untouched, f"{FULL} empty.txt", ("empty.txt", "24", "use more text")),
    "no documents": (untouched, f"{FULL} empty.jsonl", ("empty.jsonl", "24", "use more text")),
    "too few sequences": (
        untouched,
        f"{FULL} short.txt",
        ("short.txt: 4 sequences of 24 tokens, 9 are needed", "--samples 4"),
    ),
    "no such text": (untouched, f"{FULL} absent.jsonl", ("absent.jsonl", "no such file")),
    "too long": (
        untouched,
        "--calibration text.jsonl --length 129",
        ("129 tokens, but the model has 128 positions", "--length 128"),
    ),
    "no tokenizer": (
        lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        f"{FULL} text.jsonl",
        ("source: no usable tokenizer", "add the tokenizer files"),
    ),
    "another model's tokenizer": (
        lambda folder: pico.write(
            folder,
            {**weights(), "model.embed_tokens.weight": weights()["model.embed_tokens.weight"][:90].clone()},
            {"vocab_size": 90},
        ),
        f"{FULL} text.jsonl",
        ("the tokenizer returns token 95, but the embedding has 90 rows", "do not belong together"),
    ),
    "no samples": (untouched, "--calibration text.jsonl --samples 0", ("samples is 0, at least 2",)),
    "one sample": (untouched, "--calibration text.jsonl --samples 1", ("samples is 1, at least 2",)),
    "windows of one token": (untouched, "--calibration text.jsonl --length 1", ("length is 1, at least 2",)),
    "negative seed": (untouched, "--calibration text.jsonl --seed -1", ("seed is -1, at least 0",)),
    "unknown preset": (untouched, f"--preset balancd {FULL} text.jsonl", ("unknown preset", "did you mean balanced")),
    "unknown method": (
        untouched,
        f"--method sparsegpt {FULL} text.jsonl",
        ("unknown method 'sparsegpt'", "use one of"),
    ),
    "misspelt method": (untouched, f"--method hesian {FULL} text.jsonl", ("unknown method", "did you mean hessian")),
    "unknown place": (untouched, f"--keep-on dsk {FULL} text.jsonl", ("'dsk'", "did you mean disk")),
    "unknown place, unused": (untouched, "--method magnitude --keep-on dsk", ("'dsk'", "did you mean disk")),
    "unknown precision": (untouched, f"--precision bfloat {FULL} text.jsonl", ("'bfloat'", "did you mean bfloat16")),
    "activations overflow": (
        spoiled("model.layers.1.post_attention_layernorm.weight", lambda weight: weight.fill_(1e30)),
        f"{FULL} text.jsonl",
        ("layer 1", "mlp.down_proj", "not finite"),
    ),
    "the last linear overflows": (
        spoiled("model.layers.2.mlp.down_proj.weight", lambda weight: weight.fill_(3e38)),
        f"{FULL} text.jsonl",
        ("model.layers.2.mlp.down_proj", "the result of method obs is not finite"),
    ),
    "a weight is not a number": (
        spoiled(f"{Q}.weight", lambda weight: weight[3, 5].fill_(float("nan"))),
        f"{FULL} text.jsonl",
        (f"{Q}.weight", "nan", "row 3, column 5"),
    ),
    "a norm is infinite": (
        spoiled("model.layers.2.input_layernorm.weight", lambda weight: weight.fill_(float("inf"))),
        f"{FULL} text.jsonl",
        ("model.layers.2.input_layernorm.weight", "inf at element 0"),
    ),
    "nothing was pruned": (untouched, f"--method gptq --layout dense {FULL} text.jsonl", ("q_proj", "2:8 allows 6")),
    "nothing was pruned, slid": (untouched, f"--method gptq {FULL} text.jsonl", ("q_proj", "2:8 allows 6")),
    "nothing was pruned in one layer": (
        untouched,
        f"--method obs --recipe rules.yaml --layout dense {FULL} text.jsonl",
        (Q, "2:8 allows 6"),
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_calibration_that_cannot_be(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    spoil, words, message = BAD[fault]
    monkeypatch.chdir(tmp_path)
    source = write_model(tmp_path / "source")
    write_text(tmp_path / "text.jsonl")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "short.txt").write_text("w1 " * 100)
    (tmp_path / "rules.yaml").write_text("rules: [{match: '*.layers.1.*', method: rtn}]")
    spoil(source)
    refused(cli("convert", source, tmp_path / "out", "-q", *words.split()), tmp_path / "out", *message)


def test_a_data_set_out_of_reach(cli: Cli, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default text is one: who has no network must be told what to do instead."""
    import datasets

    def unreachable(*_: object, **__: object) -> object:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    out = tmp_path / "out"
    said = ("allenai/c4:en:train", "no route to host", "pass a local", ".jsonl")
    refused(cli("convert", model, out, "-q"), out, *said, code=75)


def test_a_folder_that_is_not_empty_is_refused_before_any_text_is_read(
    cli: Cli, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **_: asked.append(words) or [])
    (tmp_path / "mine.txt").write_text("precious")
    outcome = cli("convert", model, tmp_path, "-q")
    assert outcome.code == 2 and "not an empty folder" in outcome.err and not asked


@pytest.mark.parametrize(
    "place",
    [
        "slideconvert.models.decoder.Layer.inputs",
        "slideconvert.calibrate.stream.Accumulator",
        "slideconvert.recover.run.Run.step",
    ],
    ids=["smoothing", "layers", "training"],
)
def test_out_of_memory_names_the_settings_to_lower(
    cli: Cli, tmp_path: Path, model: Path, text: Path, brief: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore that nobody reads")

    monkeypatch.setattr(place, full)
    words = ("--preset", "quality", "--calibration", text, *FLAGS, "--device", "cpu", "-q")
    outcome = cli("convert", model, tmp_path / "out", *words)
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2 and len(lines) == 1 and not outcome.out
    for word in ("out of memory on cpu", "2.00 GiB", "--batch-tokens", "--keep-on", "--samples", "--offload"):
        assert word in lines[0]
