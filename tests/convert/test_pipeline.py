"""Converting whole (pico) models through the commands: what comes out, in every order, layout and form of input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico

ROOT = Path(__file__).parents[2]
PATTERNS = ("2_4", "2_6", "2_8", "2_10", "2_12", "2_14", "2_16", "2_inf")
DOWN = "model.layers.1.mlp.down_proj"


def test_dense_int8_holds_exactly_the_pruned_and_rounded_weights(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Against numpy written out by hand for one linear with a ragged tail (88 columns, groups of 6)."""
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "--pattern", "2_6", "--layout", "dense").code == 0
    weight = pico.read(source)[f"{DOWN}.weight"].float().numpy()
    expected = weight.copy()
    for row in expected:
        for start in range(0, len(row), 6):
            group = row[start : start + 6]
            missing = 6 - len(group)
            for column in np.argsort(np.abs(group), kind="stable")[: max(0, 2 - missing)]:
                group[column] = 0
    scale = np.abs(expected).max(axis=1, keepdims=True) / np.float32(127)
    written = pico.read(tmp_path / "out")
    assert np.array_equal(written[f"{DOWN}.weight_scale"].numpy(), scale)
    assert np.array_equal(written[f"{DOWN}.weight"].numpy(), np.rint(expected / scale).astype(np.int8))


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_and_scheme_converts_verifies_and_relays_both_ways(
    cli: Cli, source: Path, tmp_path: Path, scheme: str, pattern: str
) -> None:
    slide, dense = tmp_path / "slide", tmp_path / "dense"
    for out, layout in ((slide, "slide"), (dense, "dense")):
        words = ("--scheme", scheme, "--pattern", pattern, "--layout", layout)
        assert cli("convert", *MAGNITUDE, source, out, *words).code == 0
        assert cli("verify", out, "--source", source).code == 0
    assert cli("relayout", slide, tmp_path / "to_dense", "--layout", "dense").code == 0
    assert cli("relayout", dense, tmp_path / "to_slide", "--layout", "slide").code == 0
    for made, direct in ((tmp_path / "to_dense", dense), (tmp_path / "to_slide", slide)):
        assert (made / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
        assert pico.without_reports(made) == pico.without_reports(direct)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_sparsify_quantize_slide_gives_the_bytes_of_convert(
    cli: Cli, source: Path, tmp_path: Path, scheme: str
) -> None:
    sparse, quantized, slid, direct = (tmp_path / name for name in ("sparse", "quantized", "slid", "direct"))
    assert cli("sparsify", source, sparse, "--pattern", "2_10", "--method", "magnitude").code == 0
    assert cli("quantize", sparse, quantized, "--scheme", scheme).code == 0
    assert cli("slide", quantized, slid).code == 0
    assert cli("convert", *MAGNITUDE, source, direct, "--scheme", scheme, "--pattern", "2:10").code == 0
    assert (slid / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
    assert pico.without_reports(slid) == pico.without_reports(direct)
    note = json.loads((slid / "report.json").read_text())["notes"][0]
    assert "errors and sizes here are against quantized" in note and "itself made from source" in note


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_float_sources_keep_their_dtype_when_only_pruned(cli: Cli, tmp_path: Path, dtype: torch.dtype) -> None:
    source = pico.write(tmp_path / "source", pico.weights(dtype))
    assert cli("sparsify", *MAGNITUDE, source, tmp_path / "sparse").code == 0
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    before, after = pico.read(source), pico.read(tmp_path / "sparse")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all("_proj" in name for name in changed) and len(changed) == 7 * pico.LAYERS
    for name in changed:
        kept = after[name] != 0
        assert after[name].dtype == dtype and torch.equal(after[name][kept], before[name][kept])
        assert int((~kept).sum()) == before[name].numel() // 4


def test_published_order_prunes_codes_keeps_scales_and_reports_the_better_order(
    cli: Cli, source: Path, tmp_path: Path
) -> None:
    quantized, sparse = tmp_path / "quantized", tmp_path / "sparse"
    assert cli("quantize", source, quantized, "--scheme", "int8").code == 0
    outcome = cli("sparsify", *MAGNITUDE, quantized, sparse, "--pattern", "2_8")
    assert outcome.code == 0 and "keeps more accuracy" in outcome.out
    before, after = pico.read(quantized), pico.read(sparse)
    for name in before:
        if name.endswith("_proj.weight"):
            kept = after[name] != 0
            assert torch.equal(after[name][kept], before[name][kept])
            assert int((after[name].view(-1, 8) != 0).sum(1).max()) <= 6
        else:
            assert torch.equal(after[name], before[name])
    record = json.loads((sparse / "config.json").read_text())["slidesparse_config"]["layers"][DOWN]
    assert record["pruned_on"] == "codes"
    assert cli("slide", sparse, tmp_path / "slid").code == 0
    assert cli("verify", tmp_path / "slid", "--source", quantized).code == 0


def test_other_peoples_w8a8_can_be_sparsified_and_slid(cli: Cli, tmp_path: Path) -> None:
    foreign = pico.w8a8(tmp_path / "foreign")
    assert cli("sparsify", *MAGNITUDE, foreign, tmp_path / "sparse", "--pattern", "2_8").code == 0
    assert cli("slide", tmp_path / "sparse", tmp_path / "slid").code == 0
    assert cli("verify", tmp_path / "slid", "--source", foreign).code == 0
    scales = pico.read(tmp_path / "slid")[f"{DOWN}.weight_scale"]
    assert torch.equal(scales, pico.read(foreign)[f"{DOWN}.weight_scale"])


def test_slide_takes_foreign_weights_whose_pattern_the_user_states(cli: Cli, tmp_path: Path) -> None:
    foreign = pico.w8a8(tmp_path / "foreign")
    assert cli("slide", foreign, tmp_path / "inf").code == 0  # no pattern known: nothing is pruned, K' = 2K
    packed = pico.read(tmp_path / "inf")[f"{DOWN}.weight_packed"]
    assert packed.shape == (pico.HIDDEN, (2 * pico.INNER + 31) // 32 * 16)
    outcome = cli("slide", foreign, tmp_path / "wrong", "--pattern", "2_8")
    assert outcome.code == 2 and "model.layers.0.self_attn.q_proj" in outcome.err and "non-zeros" in outcome.err
    assert not (tmp_path / "wrong").exists()


def test_rules_choose_per_layer_and_kept_layers_stay_byte_for_byte(cli: Cli, source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "scheme: int8\npattern: 2:8\nmethod: magnitude\nrules:\n"
        "  - {match: '*.layers.0.*', keep: true}\n"
        "  - {match: '*.mlp.*', pattern: 2_6}\n"
        "  - {match: '*.layers.2.self_attn.o_proj', scheme: fp8, pattern: 2_inf}\n"
    )
    assert cli("convert", source, tmp_path / "out", "--recipe", recipe, "--layout", "dense").code == 0
    assert cli("verify", tmp_path / "out", "--source", source).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    record, quantization = config["slidesparse_config"]["layers"], config["quantization_config"]
    assert not [name for name in record if ".layers.0." in name]
    assert {name for name in quantization["ignore"] if name != "lm_head"} == {
        name.removesuffix(".weight") for name in pico.weights() if ".layers.0." in name and "_proj" in name
    }
    assert record["model.layers.1.mlp.up_proj"]["pattern"] == "2:6"
    assert record["model.layers.2.self_attn.q_proj"]["pattern"] == "2:8"
    for layout, other in (("slide", "dense"), ("dense", "slide")):
        direct, relaid = tmp_path / f"direct_{layout}", tmp_path / f"relaid_{layout}"
        assert cli("convert", source, direct, "--recipe", recipe, "--layout", layout).code == 0
        assert cli("convert", source, tmp_path / other, "--recipe", recipe, "--layout", other).code == 0
        assert cli("relayout", tmp_path / other, relaid, "--layout", layout).code == 0
        assert (direct / "model.safetensors").read_bytes() == (relaid / "model.safetensors").read_bytes()
        assert pico.without_reports(direct) == pico.without_reports(relaid)
    fp8 = next(group for group in quantization["config_groups"].values() if group["weights"]["type"] == "float")
    assert fp8["targets"] == ["model.layers.2.self_attn.o_proj"]
    before, after = pico.read(source), pico.read(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before if ".layers.0." in name)


def test_flags_overrule_the_recipe(cli: Cli, source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("scheme: fp8\npattern: 2:4\nmethod: magnitude\nlayout: dense\n")
    assert cli("convert", source, tmp_path / "out", "--recipe", recipe, "--pattern", "2_10").code == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse_config"]
    assert record["recipe"] == {"scheme": "fp8", "pattern": "2:10", "method": "magnitude", "layout": "dense"}


def test_sharded_in_sharded_out_with_an_index_of_every_tensor(cli: Cli, tmp_path: Path) -> None:
    source = pico.write(tmp_path / "source", shards=4)
    outcome = cli("convert", *MAGNITUDE, source, tmp_path / "out", "--shard-gb", "0.00003", "--json")
    assert outcome.code == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = pico.read(tmp_path / "out")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 1 + pico.LAYERS and shards[0] == f"model-00001-of-0000{len(shards)}.safetensors"
    assert cli("verify", tmp_path / "out", "--source", source).code == 0
    single = pico.write(tmp_path / "single")
    assert cli("convert", *MAGNITUDE, single, tmp_path / "single_out").code == 0
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in pico.read(tmp_path / "single_out").items())


def test_two_runs_write_the_same_bytes_in_every_file(cli: Cli, source: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert cli("convert", *MAGNITUDE, source, tmp_path / name).code == 0
    assert pico.files(tmp_path / "first") == pico.files(tmp_path / "second")


def test_tied_head_stored_twice_is_written_once(cli: Cli, tmp_path: Path) -> None:
    tensors = pico.weights()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    source = pico.write(tmp_path / "source", tensors)
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    assert "lm_head.weight" not in pico.read(tmp_path / "out")
    assert cli("verify", tmp_path / "out", "--source", source).code == 0


def test_untied_head_is_carried_along(cli: Cli, tmp_path: Path) -> None:
    tensors = pico.weights()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    source = pico.write(tmp_path / "source", tensors, {"tie_word_embeddings": False})
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    assert torch.equal(pico.read(tmp_path / "out")["lm_head.weight"], tensors["lm_head.weight"])


def test_negative_zeros_of_the_source_become_plain_zeros(cli: Cli, tmp_path: Path) -> None:
    tensors = pico.weights()
    tensors[f"{DOWN}.weight"][:, ::3] = -0.0
    source = pico.write(tmp_path / "source", tensors)
    for scheme in ("bf16", "fp8"):
        assert cli("convert", *MAGNITUDE, source, tmp_path / scheme, "--scheme", scheme, "--layout", "dense").code == 0
        weight = pico.read(tmp_path / scheme)[f"{DOWN}.weight"]
        assert not (weight.float().signbit() & (weight.float() == 0)).any()
        assert cli("verify", tmp_path / scheme, "--source", source).code == 0


def test_biases_and_norms_are_copied(cli: Cli, tmp_path: Path) -> None:
    source = pico.write(tmp_path / "source", pico.weights(bias=True), {"model_type": "qwen2"})
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    before, after = pico.read(source), pico.read(tmp_path / "out")
    copied = [name for name in before if name in after]
    assert sum(name.endswith(".bias") for name in copied) == 3 * pico.LAYERS
    assert all(torch.equal(before[name], after[name]) for name in copied)


def test_the_report_contains_what_was_measured(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Error, zeros and bytes of the report against the tensors themselves."""
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "--layout", "dense").code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verified"] == len(pico.read(tmp_path / "out")) and not report["notes"]
    before, after = pico.read(source), pico.read(tmp_path / "out")
    for layer in report["layers"]:
        weight = before[f"{layer['name']}.weight"].double()
        codes, scale = after[f"{layer['name']}.weight"], after[f"{layer['name']}.weight_scale"]
        error = float((weight - codes.double() * scale.double()).norm() / weight.norm())
        assert layer["error"] == pytest.approx(error, rel=1e-5)
        pruned = weight.abs().view(-1, 8).sort(dim=1).values[:, :2].norm() / weight.norm()
        assert layer["prune_error"] == pytest.approx(float(pruned), rel=1e-5)
        assert layer["zeros"] == int((codes == 0).sum())
        assert layer["pruned"] == weight.numel() // 4
        assert layer["bytes_after"] == codes.nbytes + scale.nbytes
    assert report["totals"]["file_bytes_after"] == sum(tensor.nbytes for tensor in after.values())


def test_perplexity_measured_in_the_run_is_in_every_report(cli: Cli, tmp_path: Path) -> None:
    model, text = ROOT / "examples/demo_model", ROOT / "examples/demo_text/evaluation.jsonl"
    outcome = cli("convert", *MAGNITUDE, model, tmp_path / "out", "--text", text, "--sequences", "2", "--json")
    told = json.loads(outcome.out)["perplexity"]
    measured = json.loads(cli("eval", model, tmp_path / "out", "--text", text, "--sequences", "2", "--json").out)
    assert [told["source"], told["output"]] == [row["perplexity"] for row in measured["results"]]
    for name in ("README.md", "report.html"):
        page = (tmp_path / "out" / name).read_text()
        assert all(f"{value:.3f}" in page for value in told.values()), name


def test_the_licence_of_the_source_is_carried_on(cli: Cli, source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n---\nmore\n")
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    front = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert "license: apache-2.0" in front and "- en" in front


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gpu_writes_the_same_weights_as_the_cpu(
    cli: Cli, source: Path, tmp_path: Path, scheme: str, pattern: str
) -> None:
    for device in ("cpu", "cuda"):
        words = ("--scheme", scheme, "--pattern", pattern, "--device", device)
        assert cli("convert", *MAGNITUDE, source, tmp_path / device, *words).code == 0
    cpu, cuda = (tmp_path / device / "model.safetensors" for device in ("cpu", "cuda"))
    assert cpu.read_bytes() == cuda.read_bytes()
