"""BitNet: ternarized as it runs, stored without loss, pruned on its own grid, read in every form it comes in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations import bitnet as theirs

from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.run import RunSettings
from slideconvert.calibrate.store import LayerStore
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import FP8, INT8
from slideconvert.core.ternary import ternarize, unpack_ternary
from slideconvert.core.weights import floats
from slideconvert.formats.record import describe_linear, read_record
from slideconvert.models.architecture import HEADS, MLP_INNER
from slideconvert.models.families import BITNET, decoder_linears
from slideconvert.models.load import load_model
from slideconvert.permute.permutations import permute_weight
from slideconvert.prune import METHODS, Problem
from slideconvert.prune.statistics import Statistics
from slideconvert.recover.trainable import SurvivorLinear
from slideconvert.report import Report
from slideconvert.verify import verify_checkpoint
from tests.conftest import MAGNITUDE, Cli
from tests.convert.test_bad_input import refused
from tests.convert.test_verify import edit_tensors
from tests.helpers import bitnet, pico
from tests.helpers.calibrated import FLAGS, calibrated_by, plan_for, quality, write_model
from tests.helpers.matrices import UNGROUPED
from tests.twins import ternary

CALIBRATED = [
    name for name, method in METHODS.items() if method.calibrated and method.prunes and not method.whole_groups
]
TOKENS = torch.randint(2, pico.VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bitnet.write(tmp_path_factory.mktemp("model") / "source")


def weights(folder: Path) -> dict[str, QuantizedWeight]:
    """Every decoder linear of a checkpoint, which must be codes or ternary."""
    checkpoint = Checkpoint.open(folder)
    record = read_record(checkpoint.config, "test")
    found = {}
    for linear in decoder_linears(checkpoint.config):
        weight = describe_linear(checkpoint, record, linear.name).read(checkpoint)
        assert isinstance(weight, QuantizedWeight)
        found[linear.name] = weight
    return found


def twins(tensors: dict[str, Tensor]) -> dict[str, tuple[np.ndarray, np.float32]]:
    """Codes and scale of every linear of the latent, by the twin."""
    return {
        name.removesuffix(".weight"): ternary.ternarize(tensor.float().numpy())
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight")
    }


# ---- rounding and packing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.02, 1e-6, 30.0])
def test_ternarized_as_it_was_trained(dtype: torch.dtype, size: float) -> None:
    """The twin's codes and scale, and the very weights with which transformers trains and runs BitNet. 1e-6: below the
    mean that the scale follows."""
    master = (torch.randn(96, 80, generator=torch.Generator().manual_seed(0)) * size).to(dtype)
    made = ternarize(master)
    codes, scale = ternary.ternarize(master.float().numpy())
    assert torch.equal(made.codes, torch.from_numpy(codes)) and made.scheme.ternary
    assert made.scale.shape == (96, 1) and (made.scale == float(scale)).all()
    with torch.compiler.set_stance("force_eager"):
        served = theirs.WeightQuant.apply(master.float())
    # Their mean is summed in float32, in another order: the scale may be off by its last bits.
    assert torch.equal(served.sign(), made.codes.float())
    torch.testing.assert_close(served, made.dequantize(), rtol=1e-6, atol=0)


def test_ties_go_to_zero_and_extremes_are_cut() -> None:
    """Mean 1: a half is as near to 0 as to 1, and goes to the even one."""
    master = torch.tensor([[0.5, -0.5, 1.5, -2.5, 0.75, 0.25]]) / 1.0
    master = torch.cat([master, 2 - master.abs()])  # mean |w| = 1
    assert ternarize(master).codes[0].tolist() == [0, 0, 1, -1, 1, 0]


def test_packed_bytes() -> None:
    """Eight rows in two: bits 0-1 hold rows 0 and 1, bits 2-3 rows 2 and 3, and so on, each code plus one."""
    codes = torch.tensor([[-1], [0], [1], [-1], [0], [1], [1], [-1]], dtype=torch.int8)
    packed = torch.tensor([[0b10_01_10_00], [0b00_10_00_01]], dtype=torch.uint8)
    assert torch.equal(unpack_ternary(packed), codes)
    assert torch.equal(theirs.pack_weights(codes.clone()), packed)
    assert np.array_equal(ternary.pack(codes.numpy()), packed.numpy())


@pytest.mark.parametrize("form", bitnet.QUANTIZATION)
def test_every_form_gives_the_same_model(cli: Cli, tmp_path: Path, form: str) -> None:
    """Codes and scales to the last bit; a packed scale that was divided by is off by the roundings of 1 / (1 / s)."""
    source = bitnet.write(tmp_path / "source", form)
    out = tmp_path / "out"
    assert cli("convert", source, out, "--pattern", "2_inf", "--layout", "dense").code == 0
    assert cli("verify", out, "--source", source).code == 0
    for name, (codes, scale) in twins(bitnet.latent()).items():
        made = weights(out)[name]
        assert np.array_equal(made.codes.numpy(), codes)
        off = np.abs(made.scale.numpy() / scale - 1).max()
        assert off <= (2**-22 if form == "packed-inverse" else 0)
    run_here = logits(load_model(Checkpoint.open(source), activations="float"))
    run_there = logits(load_model(Checkpoint.open(out), activations="float"))
    assert torch.equal(run_here, run_there) and float(run_here.abs().max()) > 0.1
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert all(linear["ternary"] for linear in config["slidesparse_config"]["layers"].values())


# ---- nothing is lost where nothing is pruned


@pytest.mark.parametrize("scheme", UNGROUPED)
def test_unpruned_it_is_the_model_that_was_trained(cli: Cli, tmp_path: Path, model: Path, scheme: str) -> None:
    """Stored in any scheme, with unquantized activations: the logits of transformers' own BitNet, which ternarizes its
    latent weights as it runs. bf16 keeps the digits of bfloat16 of each scale, 2⁻⁸ of it."""
    out = tmp_path / "out"
    assert cli("convert", model, out, "--scheme", scheme, "--pattern", "2_inf", "--layout", "dense").code == 0
    for name, (codes, scale) in twins(bitnet.latent()).items():
        made = weights(out)[name]
        assert np.array_equal(made.codes.float().numpy(), codes)
        assert np.abs(made.scale.numpy() / scale - 1).max() <= (2**-8 if scheme == "bf16" else 0)
    expected = logits(online(tmp_path / "online", quantized=False))
    made = logits(load_model(Checkpoint.open(out), activations="float"))
    allowed = 0.02 if scheme == "bf16" else 1e-4
    assert (made - expected).abs().max() < allowed * expected.abs().max()
    source = logits(load_model(Checkpoint.open(model), activations="float"))
    assert torch.equal(made, source) or scheme == "bf16"


def test_activations_are_rounded_as_they_were_in_training(tmp_path: Path) -> None:
    """BitNet multiplies by 127 / absmax where we divide by absmax / 127: codes differ, by one, only next to a tie."""
    from slideconvert.kernels.quantize.reference import quantize as quantize_tokens

    x = torch.randn(64, 88, generator=torch.Generator().manual_seed(1)) * 3
    codes, scale = quantize_tokens(x, torch.int8)
    with torch.compiler.set_stance("force_eager"):
        served = theirs.ActQuant.apply(x)
    off = (served / scale.view(-1, 1) - codes.float()).abs()
    tie = (x / scale.view(-1, 1)).abs().frac().sub(0.5).abs() < 1e-4
    assert (off[~tie] < 1e-4).all() and (off < 1 + 1e-4).all()


def test_as_served_it_predicts_what_the_trained_one_predicts(tmp_path: Path, model: Path) -> None:
    """With 8-bit activations on both sides; those few codes that fall otherwise at ties move a logit a little."""
    expected = logits(online(tmp_path / "online", quantized=True)).log_softmax(-1)
    made = logits(load_model(Checkpoint.open(model))).log_softmax(-1)
    targets = TOKENS[:, 1:, None]
    both = [-part[:, :-1].gather(-1, targets).mean().item() for part in (made, expected)]
    assert math.exp(both[0]) == pytest.approx(math.exp(both[1]), rel=1e-3)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)  # the latent weights as they are
    other = -logits(plain).log_softmax(-1)[:, :-1].gather(-1, targets).mean().item()
    assert abs(math.exp(other) / math.exp(both[1]) - 1) > 0.01


def online(folder: Path, *, quantized: bool) -> nn.Module:
    """transformers' BitNet that ternarizes as it runs; its activations rounded, or not."""
    made = AutoModelForCausalLM.from_pretrained(bitnet.write(folder, "online"), dtype=torch.float32)
    linears = [module for module in made.modules() if isinstance(module, theirs.AutoBitLinear)]
    assert len(linears) == 21
    if not quantized:
        for linear in linears:
            with torch.compiler.set_stance("force_eager"):
                weight = theirs.WeightQuant.apply(linear.weight)
            linear.forward = lambda x, weight=weight: nn.functional.linear(x, weight)  # type: ignore[method-assign]
    return made.eval()


def logits(made: nn.Module) -> Tensor:
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        return made(input_ids=TOKENS, use_cache=False).logits


# ---- pruned


@pytest.mark.parametrize(
    ("method", "scheme", "layout"),
    [
        *((method, scheme, "slide") for method in ("magnitude", *CALIBRATED) for scheme in ("int8", "fp8")),
        *((method, scheme, "dense") for method in ("magnitude", "obs") for scheme in ("int8", "fp8")),
    ],
)
def test_pruned_weights_stay_ternary(
    cli: Cli, tmp_path: Path, model: Path, text: Path, method: str, scheme: str, layout: str
) -> None:
    """The layout matters after pruning: one method without calibration and one with it show both."""
    out = tmp_path / "out"
    words = calibrated_by(text, "--method", method, "--scheme", scheme, "--layout", layout)
    assert cli("convert", model, out, "--pattern", "2_6", *words).code == 0
    assert cli("verify", out, "--source", model).code == 0
    report = Report.from_json((out / "report.json").read_text())
    dense = twins(bitnet.latent())
    for layer in report.layers:
        assert layer.legal_groups == ternary.legal_groups(dense[layer.name][0], 6)
        assert layer.groups == layer.shape[0] * -(-layer.shape[1] // 6)
    for weight in weights(out).values():
        codes = weight.codes.float()
        assert codes.unique().tolist() == [-1.0, 0.0, 1.0]
        assert ternary.legal_groups(codes.numpy().astype(np.int8), 6) == len(codes) * -(-codes.shape[1] // 6)
    other = tmp_path / "other"
    assert cli("relayout", out, other, "--layout", "slide" if layout == "dense" else "dense").code == 0
    for name, weight in weights(other).items():
        assert torch.equal(floats(weight), floats(weights(out)[name]))


def test_of_equal_codes_those_with_the_smallest_masters_go(cli: Cli, tmp_path: Path, model: Path) -> None:
    """And of groups that have their zeros, none."""
    assert cli("convert", model, tmp_path / "out", *MAGNITUDE, "--pattern", "2_8", "--layout", "dense").code == 0
    tensors = bitnet.latent()
    for name, (codes, _) in twins(tensors).items():
        size = tensors[f"{name}.weight"].float().abs().numpy()
        expected = codes.copy()
        for row, start in np.ndindex(len(codes), -(-codes.shape[1] // 8)):
            group = slice(8 * start, min(8 * start + 8, codes.shape[1]))
            goes = max(0, 2 - (8 - (group.stop - group.start)))
            expected[row, group.start + np.argsort(size[row, group], kind="stable")[:goes]] = 0
        assert np.array_equal(weights(tmp_path / "out")[name].codes.numpy(), expected), name


def test_packed_codes_have_no_masters_to_ask(cli: Cli, tmp_path: Path, text: Path) -> None:
    source = bitnet.write(tmp_path / "source", "packed")
    for method in ("magnitude", "wanda", "obs"):
        out = tmp_path / method
        words = calibrated_by(text, "--method", method, "--pattern", "2_8")
        assert cli("convert", source, out, *words).code == 0
        assert all(weight.codes.unique().tolist() == [-1, 0, 1] for weight in weights(out).values())
        assert cli("verify", out, "--source", source).code == 0


def test_calibration_loses_less_than_choosing_by_size(tmp_path: Path, model: Path, text: Path) -> None:
    """Errors of outputs on held-out text, as the reports tell them: descent below the sweep below Wanda, on
    average. They need more tokens to fit than a linear has columns."""
    means = {}
    for method in ("wanda", "hessian", "obs"):
        report = run(model, tmp_path / method, text, samples=64, method=method, pattern="2:4")
        found = [layer.output_error for layer in report.layers]
        assert all(error is not None for error in found)
        means[method] = sum(error or 0 for error in found) / len(found)
    assert means["obs"] < means["hessian"] < means["wanda"]


def run(source: Path, out: Path, text: Path, **words: Any) -> Report:
    return convert(plan_for(source, text, **words), out, settings=RunSettings(precision="float32"))


def test_bfloat16_stays_ternary_in_later_steps(cli: Cli, tmp_path: Path, model: Path, text: Path) -> None:
    """sparsify leaves floats of one magnitude a row; quantize finds the same codes in them."""
    pruned, quantized = tmp_path / "pruned", tmp_path / "quantized"
    assert cli("sparsify", model, pruned, "--pattern", "2_8", "--calibration", text, *FLAGS).code == 0
    stored = pico.read(pruned)
    assert "quantization_config" not in json.loads((pruned / "config.json").read_text())
    for name, weight in weights(pruned).items():
        floats_of = stored[f"{name}.weight"]
        assert floats_of.dtype == torch.bfloat16 and torch.equal(floats_of.float(), weight.dequantize())
        assert len(floats_of[0].abs().unique()) == 2
    assert cli("quantize", pruned, quantized, "--scheme", "fp8").code == 0
    for name, weight in weights(quantized).items():
        assert torch.equal(weight.dequantize(), weights(pruned)[name].dequantize())
        assert weight.scheme == FP8.as_ternary
    assert cli("verify", quantized, "--source", pruned).code == 0
    assert cli("verify", pruned, "--source", model).code == 0


def test_codes_of_a_checkpoint_are_pruned_further(cli: Cli, tmp_path: Path, model: Path, text: Path) -> None:
    """Quantized first, with no latent weights left: still ternary, and told so."""
    quantized, pruned = tmp_path / "quantized", tmp_path / "pruned"
    assert cli("quantize", model, quantized, "--scheme", "int8").code == 0
    assert cli("sparsify", quantized, pruned, "--pattern", "2_8", "--calibration", text, *FLAGS).code == 0
    assert all(weight.codes.unique().tolist() == [-1, 0, 1] for weight in weights(pruned).values())
    assert cli("verify", pruned, "--source", quantized).code == 0


def test_wanda_weighs_masters_by_their_inputs() -> None:
    latent = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    norms = torch.linspace(0.2, 3, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    dense = ternarize(latent)
    solve = METHODS["wanda"].solve
    assert solve is not None
    statistics = Statistics(norms.square().diag(), None, 100)
    made = solve(Problem(dense.dequantize(), statistics, BlockPattern(8), INT8.as_ternary, latent)).weight
    assert isinstance(made, QuantizedWeight)
    goes = (latent.abs() * norms).view(16, 3, 8).argsort(2)[:, :, :2]
    expected = dense.codes.view(16, 3, 8).scatter(2, goes, 0).view(16, 24)
    assert torch.equal(made.codes, expected) and torch.equal(made.scale, dense.scale)


def test_masters_follow_their_channels(model: Path) -> None:
    """In the layer that was permuted the latent weights round to the codes that stand there."""
    plan, source = plan_for(model), Checkpoint.open(model)
    generator = torch.Generator().manual_seed(0)
    heads = torch.stack([torch.randperm(16, generator=generator) for _ in range(pico.KV_HEADS)])
    orders = {HEADS: heads, MLP_INNER: torch.randperm(pico.INNER, generator=generator)}
    moved = 0
    for linear in plan.linears[:7]:
        latent, dense = linear.latent_weights(source, orders, "cpu"), linear.stored.read(source)
        stands = permute_weight(linear.linear.submodule, dense, orders, BITNET.free_channels(pico.CONFIG))
        assert latent is not None and isinstance(stands, QuantizedWeight) and isinstance(dense, QuantizedWeight)
        assert torch.equal(ternarize(latent).codes, stands.codes)
        moved += not torch.equal(stands.codes, dense.codes)
    assert moved == 5  # all but q_proj and k_proj


# ---- full codes


def test_full_codes_on_demand(cli: Cli, tmp_path: Path, model: Path, text: Path) -> None:
    """Survivors on all of INT8: nearer to the dense model, and no longer ternary. Solvers do not see the text on which
    errors are measured, so they need enough text."""
    errors = {}
    for codes in ("ternary", "full"):
        report = run(model, tmp_path / codes, text, samples=32, method="obs", codes=codes)
        errors[codes] = [layer.output_error or 0 for layer in report.layers]
        assert any(("not a BitNet model" in note) == (codes == "full") for note in report.notes)
        assert report.recipe["codes"] == codes
    assert sum(errors["full"]) < 0.8 * sum(errors["ternary"])
    full = weights(tmp_path / "full")
    assert all(len(weight.codes.unique()) > 20 and not weight.scheme.ternary for weight in full.values())
    assert cli("verify", tmp_path / "full", "--source", model).code == 0


def test_full_codes_unpruned_are_the_same_weights(cli: Cli, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    assert cli("convert", model, out, "--pattern", "2_inf", "--codes", "full", "--layout", "dense").code == 0
    assert cli("verify", out, "--source", model).code == 0
    for name, (codes, scale) in twins(bitnet.latent()).items():
        made = weights(out)[name]
        assert np.array_equal(made.codes.numpy(), 127 * codes)
        torch.testing.assert_close(made.dequantize(), torch.from_numpy(codes * scale), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "bf16"])
def test_full_codes_without_calibration_are_verified(cli: Cli, tmp_path: Path, model: Path, scheme: str) -> None:
    """The largest code times its scale is the source's magnitude up to rounding, not to the bit; bfloat16 has fewer
    digits than the scale."""
    out = tmp_path / "out"
    assert cli("convert", model, out, "--method", "magnitude", "--codes", "full", "--scheme", scheme).code == 0
    verdict = cli("verify", out, "--source", model)
    assert verdict.code == 0, verdict.err


def test_codes_are_for_ternary_weights(cli: Cli, tmp_path: Path) -> None:
    source = write_model(tmp_path / "llama")
    for codes, words in (("full", ("not ternary", "leave --codes out")), ("fulll", ("full",))):
        refused(cli("convert", source, tmp_path / "out", *MAGNITUDE, "--codes", codes), tmp_path / "out", *words)


def test_codes_may_differ_among_linears_that_share_an_input(tmp_path: Path, model: Path, text: Path) -> None:
    """They are stored alike, so that a server may fuse them; each is solved on its own grid, and the plan says both."""
    report = run(model, tmp_path / "out", text, method="obs", rules=[{"match": "*.q_proj", "codes": "full"}])
    for name, weight in weights(tmp_path / "out").items():
        assert weight.scheme.ternary != name.endswith("q_proj")
        assert (weight.codes.abs().max() > 1) == name.endswith("q_proj")
    assert any("-1, 0 or 1" in note for note in report.notes) and any("not a BitNet" in note for note in report.notes)


def test_masters_cannot_be_kept(cli: Cli, tmp_path: Path, model: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("scheme: int8\nmethod: magnitude\nrules:\n  - {match: '*.layers.0.*', keep: true}\n")
    words = ("model.layers.0", "ternarized", "2:inf")
    refused(cli("convert", model, tmp_path / "out", "--recipe", recipe), tmp_path / "out", *words)


# ---- recovery and permutations


@pytest.mark.parametrize("scheme", ["int8", "bf16"])
def test_quality_trains_ternary_weights(cli: Cli, tmp_path: Path, model: Path, text: Path, scheme: str) -> None:
    """Channels permuted, the norms between them along; codes and scales trained; the copy sound against its source."""
    plan = plan_for(model, text, preset="quality", scheme=scheme)
    plan = replace(plan, recipe=replace(plan.recipe, preset=quality(2, 2)))
    report = convert(plan, tmp_path / "out", settings=RunSettings(precision="float32"))
    assert len(report.training) == pico.LAYERS + 1
    for weight in weights(tmp_path / "out").values():
        assert weight.codes.unique().tolist() == [-1, 0, 1]
    source, made = pico.read(model), pico.read(tmp_path / "out")
    for norm in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"):
        name = f"model.layers.1.{norm}.weight"
        assert not torch.equal(source[name], made[name])
        assert torch.equal(source[name].sort().values, made[name].sort().values)
    assert cli("verify", tmp_path / "out", "--source", model).code == 0
    edit_tensors(tmp_path / "out", lambda tensors: tensors.update({name: source[name]}))
    outcome = cli("verify", tmp_path / "out", "--source", model)
    assert outcome.code == 1 and f"{name}: differs" in outcome.out + outcome.err


def test_what_is_not_pruned_stays_ternary_in_training(tmp_path: Path, model: Path, text: Path) -> None:
    """Linears that no method solves train as codes, too, when they are stored as floats."""
    rules = [{"match": "*.self_attn.*", "pattern": "2:inf"}]
    plan = plan_for(model, text, preset="quality", scheme="bf16", rules=rules)
    plan = replace(plan, recipe=replace(plan.recipe, preset=quality(4, 4)))
    convert(plan, tmp_path / "out", settings=RunSettings(precision="float32"))  # which verifies
    assert all(weight.codes.unique().tolist() == [-1, 0, 1] for weight in weights(tmp_path / "out").values())


@pytest.mark.parametrize("known", [True, False], ids=["latent", "no latent weights"])
@pytest.mark.parametrize("scheme", [INT8, FP8], ids=str)
def test_a_ternary_linear_starts_at_what_is_served_and_stays_ternary(scheme: Any, known: bool) -> None:
    latent = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    weight = ternarize(latent)
    codes = weight.codes.clone()
    codes[:, ::5] = 0  # pruned
    codes[:, 1::5] *= -1  # flipped by the solver: their latent weights are on the other side
    codes[:, 2::5] = 1  # and woken by it, from latent weights near zero
    weight = QuantizedWeight(codes.to(getattr(torch, scheme.dtype)), weight.scale * 1.5, scheme.as_ternary)
    linear = SurvivorLinear(weight, None, latent if known else None)
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(linear(x), nn.functional.linear(x, floats(weight)))
    optimizer = torch.optim.Adam([parameter for parameter, _ in linear.trained], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (linear(x) - 1).square().mean().backward()
        optimizer.step()
    made = linear.weight()
    assert isinstance(made, QuantizedWeight) and set(made.codes.float().unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert not made.codes[:, ::5].float().any() and not torch.equal(made.scale, weight.scale)
    assert not torch.equal(made.codes.float(), weight.codes.float())
    assert torch.equal(linear(x), nn.functional.linear(x, floats(made)))


def test_the_gain_learns_by_the_rounded_weights() -> None:
    """dL/dgain of y = gain Ŵ x is the sum of Ŵ dL/dy xᵀ over the row, with what is served, not with the latent."""
    latent = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    weight = ternarize(latent)
    linear = SurvivorLinear(weight, None, latent)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    linear(x).sum().backward()
    assert linear.gain is not None and linear.gain.grad is not None
    expected = (floats(weight) * x.sum(0)).sum(1, keepdim=True)
    torch.testing.assert_close(linear.gain.grad, expected, rtol=1e-5, atol=1e-6)


def test_a_kept_layer_stays_ternary(tmp_path: Path) -> None:
    """What calibration lays down for resuming comes back as it was."""
    weight = INT8.as_ternary.quantize(torch.tensor([[0.5, -0.5, 0.0], [0.0, 2.0, -2.0]]))
    store = LayerStore(tmp_path, "layer")
    store.save(0, LayerResult(weights={"mlp.up_proj": weight}))
    loaded = store.load(0)
    assert loaded is not None
    found = loaded.weights["mlp.up_proj"]
    assert isinstance(found, QuantizedWeight) and found.scheme == INT8.as_ternary
    assert torch.equal(found.codes, weight.codes) and torch.equal(found.scale, weight.scale)


# ---- damage


def spoil(out: Path, name: str, value: int) -> None:
    """Another number in place of the first that is not zero, hash and all."""

    def change(tensors: dict[str, Tensor]) -> None:
        stored = tensors[f"{name}.weight"]
        row, column = (int(part) for part in stored.nonzero()[0])
        stored[row, column] = value

    edit_tensors(out, change)


@pytest.mark.parametrize("value", [2, -3, 127])
def test_a_code_beyond_one_is_found(cli: Cli, tmp_path: Path, model: Path, value: int) -> None:
    out = tmp_path / "out"
    assert cli("convert", model, out, *MAGNITUDE, "--pattern", "2_8", "--layout", "dense").code == 0
    name = "model.layers.1.mlp.up_proj"
    spoil(out, name, value)
    verdict = verify_checkpoint(Checkpoint.open(out))
    assert any(name in fault and "ternary" in fault for fault in verdict.faults)


def test_a_float_of_another_size_is_found(cli: Cli, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    assert cli("sparsify", model, out, "--pattern", "2_8", *MAGNITUDE).code == 0
    name = "model.layers.1.mlp.up_proj"
    spoil(out, name, 1)
    verdict = verify_checkpoint(Checkpoint.open(out))
    assert any(name in fault and "ternary" in fault for fault in verdict.faults)


def test_it_is_called_what_it_is(cli: Cli, tmp_path: Path, model: Path) -> None:
    outcome = cli("plan", model, "--pattern", "2_8")
    assert outcome.code == 0 and "-1, 0 or 1" in outcome.out and "codes: full" in outcome.out
    assert cli("convert", model, tmp_path / "out", *MAGNITUDE, "--pattern", "2_8").code == 0
    for folder, name in ((model, "bf16 ternary"), (tmp_path / "out", "int8 ternary")):
        outcome = cli("inspect", folder)
        assert outcome.out.count(name) == 21
        assert all(linear["ternary"] for linear in json.loads(cli("inspect", folder, "--json").out)["linears"])
    card = (tmp_path / "out" / "README.md").read_text()
    report = Report.from_json((tmp_path / "out" / "report.json").read_text())
    legal = sum(layer.legal_groups or 0 for layer in report.layers) / sum(layer.groups for layer in report.layers)
    assert f"| Blocks that already had two zeros |  | {100 * legal:.2f}% |" in card


# ---- loaded elsewhere


@pytest.mark.parametrize("layout", ["dense", "slide"])
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_transformers_runs_it(cli: Cli, tmp_path: Path, model: Path, scheme: str, layout: str) -> None:
    """With slideconvert imported: the logits of our own loader to the last bit, and text of its own."""
    out = tmp_path / "out"
    words = (*MAGNITUDE, "--pattern", "2_8", "--scheme", scheme, "--layout", layout)
    assert cli("convert", model, out, *words).code == 0
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    assert type(loaded).__name__ == "BitNetForCausalLM"
    assert torch.equal(logits(loaded), logits(load_model(Checkpoint.open(out))))
    with torch.inference_mode():
        continued = loaded.generate(TOKENS[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert continued.shape == (2, 9)
