"""Smoothing through whole conversions: on several ranks, one after another, of other families, and in transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from slideconvert.calibrate import smoothing, stream
from slideconvert.checkpoint.files import CHANNEL_SCALES, SINGLE
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.decoder import Decoder
from slideconvert.smooth.scales import Scales, Smoothed, read_scales, to_json
from tests.conftest import Cli
from tests.helpers import family_models, pico
from tests.helpers.calibrated import FLAGS, write_text
from tests.helpers.demo import text_windows
from tests.helpers.launches import launch
from tests.helpers.outliers import BALANCED, CALIBRATION, LARGE, NORMS, READERS, UP

UNPRUNED = ("--pattern", "2_inf", *BALANCED)


def by_hand(source: Path, scales: Scales, out: Path) -> Path:
    """The source in floats with scales folded in, and the file that tells so."""
    shutil.copytree(source, out)
    checkpoint = Smoothed.of(Checkpoint.open(source), scales)
    save_file({name: checkpoint.read(name) for name in checkpoint.tensors}, out / SINGLE, metadata={"format": "pt"})
    (out / CHANNEL_SCALES).write_text(to_json(scales))
    return out


def test_two_ranks_find_the_scales_of_one(cli: Cli, outliers: Path, smoothed: Path, tmp_path: Path) -> None:
    """The first rank searches. Its scales are those of one process to the bit, so norms are too, and codes of the first
    inputs differ by the rounding of sums alone (tests/convert/test_several_ranks.py has the bound)."""
    ended = launch(tmp_path / "logs", ["convert", outliers, tmp_path / "out", *BALANCED, "-q"], 2)
    assert [one.code for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert (tmp_path / "out" / CHANNEL_SCALES).read_bytes() == (smoothed / CHANNEL_SCALES).read_bytes()
    one, two = load_file(smoothed / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one if name.endswith("norm.weight"))
    for submodule in READERS[NORMS[0]]:
        name = f"model.layers.0.{submodule}.weight"
        change = (one[name].int() - two[name].int()).abs()
        assert int(change.max()) <= 1 and float((change > 0).float().mean()) < 0.05
    assert cli("verify", tmp_path / "out", "--source", outliers).code == 0


@pytest.mark.parametrize(
    "words", [("--method", "magnitude"), ("--preset", "balanced", "--block-epochs", 0, *CALIBRATION)]
)
def test_a_smoothed_checkpoint_pruned_again_keeps_its_scales(
    cli: Cli, outliers: Path, smoothed: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    """Its weights are codes, into whose columns no scale can be folded: balanced leaves the channels alone."""
    out = tmp_path / "out"
    assert cli("sparsify", smoothed, out, "--pattern", "2_4", *words).code == 0
    assert (out / CHANNEL_SCALES).read_bytes() == (smoothed / CHANNEL_SCALES).read_bytes()
    assert (out / SINGLE).read_bytes() != (smoothed / SINGLE).read_bytes()
    for source in (smoothed, outliers):
        assert cli("verify", out, "--source", source).code == 0


def test_scales_are_added_to_those_of_a_smoothed_source(
    cli: Cli, outliers: Path, smoothed: Path, tmp_path: Path
) -> None:
    """A source in floats whose weights have taken over half of what is found. The file is relative to the first source,
    as are the norms."""
    found = read_scales(Checkpoint.open(smoothed))
    part = {layer: {norm: one // 2 for norm, one in norms.items()} for layer, norms in found.items()}
    between = by_hand(outliers, part, tmp_path / "between")
    out = tmp_path / "out"
    assert cli("convert", between, out, *BALANCED).code == 0
    total = read_scales(Checkpoint.open(out))
    for layer, norms in part.items():
        for norm, exponents in norms.items():
            large = list(LARGE)
            assert (total[layer][norm][large] > exponents[large]).all(), "what was found now is added"
    first, last = load_file(outliers / SINGLE), load_file(out / SINGLE)
    for layer, makers in total.items():
        for norm, exponents in ((maker, one) for maker, one in makers.items() if maker in NORMS):
            name = f"model.layers.{layer}.{norm}.weight"
            assert torch.equal(last[name], first[name] / torch.exp2(exponents.float()).to(first[name].dtype))
    for source in (between, outliers):
        assert cli("verify", out, "--source", source).code == 0


ROUNDING = 0.05
"""Bounds the error of logits: rounding numbers whose largest is five times their mean square, as of random ones, to 127
steps costs 5 / 127 / 12^0.5 = 1.1 % of them. Of inputs and weights in 14 linears it adds up to 28^0.5 times that, 6 %,
if every linear were all there is; each only adds to the residual stream."""


def relative_error(ours: Path, theirs: Path) -> float:
    """||logits of ours - logits of theirs|| / ||logits of theirs||, both as transformers loads them."""
    tokens = text_windows(48, 4)

    def logits(folder: Path) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            found: Tensor = model(input_ids=tokens, use_cache=False).logits
        return found

    wanted = logits(theirs)
    return float((logits(ours) - wanted).norm() / wanted.norm())


def test_biases_are_not_scaled(cli: Cli, outliers: Path, tmp_path: Path) -> None:
    """Qwen2 has biases on q, k and v: they are added to what the scaled columns give."""
    source = tmp_path / "source"
    shutil.copytree(outliers, source)
    tensors, generator = load_file(source / SINGLE), torch.Generator().manual_seed(0)
    for name, weight in list(tensors.items()):
        if name.removesuffix(".weight").endswith(READERS[NORMS[0]]):
            bias = torch.randn(len(weight), generator=generator).mul(0.05).to(weight.dtype)
            tensors[name.replace(".weight", ".bias")] = bias
    save_file(tensors, source / SINGLE, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    )
    out = tmp_path / "out"
    assert cli("convert", source, out, *UNPRUNED).code == 0
    assert set(read_scales(Checkpoint.open(out))[0]) == set(READERS)
    written = load_file(out / SINGLE)
    biases = [name for name in tensors if name.endswith(".bias")]
    assert len(biases) == 6 and all(written[name].equal(tensors[name]) for name in biases)
    assert cli("verify", out, "--source", source).code == 0
    assert relative_error(out, source) < ROUNDING


def test_held_out_sequences_decide_no_scales(
    cli: Cli, outliers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of six sequences is held out, the last; of many, the first few decide."""
    seen: list[Tensor] = []

    def embed(decoder: Decoder, parts: Sequence[Tensor], *more: Any) -> Any:
        seen.extend(parts)
        return stream.embed(decoder, parts, *more)

    monkeypatch.setattr(smoothing, "embed", embed)
    words = ("--pattern", "2_inf", "--preset", "balanced", "--block-epochs", 0, *CALIBRATION, "--samples")
    for samples in (6, 16):
        assert cli("convert", outliers, tmp_path / f"{samples}", *words, samples).code == 0
    few, many = seen
    assert (len(few), len(many)) == (5, smoothing.SEQUENCES)
    assert torch.equal(few, many[:5])


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_norms_that_take_no_scales_are_left_alone(cli: Cli, family: str, tmp_path: Path) -> None:
    """Gemma multiplies by 1 + weight, and OLMo 2 has no norm before its linears. Their inner channels can be scaled."""
    source, text = family_models.write(tmp_path / "source", family), write_text(tmp_path / "text.jsonl")
    out = tmp_path / "out"
    words = ("--preset", "balanced", "--block-epochs", 0, "--calibration", text, *FLAGS)
    assert cli("convert", source, out, *words).code == 0
    assert all(set(makers) == {UP} for makers in read_scales(Checkpoint.open(out)).values())
    theirs, ours = pico.read(source), pico.read(out)
    assert all(ours[name].equal(theirs[name]) for name in theirs if "norm" in name)
    assert cli("verify", out, "--source", source).code == 0


def test_a_family_without_channels_to_scale_refuses_it(cli: Cli, tmp_path: Path) -> None:
    """GLM-4 has gate and up in one matrix, and norms behind its linears."""
    source, text = family_models.write(tmp_path / "source", "glm4"), write_text(tmp_path / "text.jsonl")
    refused = cli("convert", source, tmp_path / "out", "--smooth", "--calibration", text, *FLAGS)
    assert refused.code == 2 and "smooth has no effect" in refused.err


def test_permuted_inner_channels_are_not_scaled_afterwards(cli: Cli, outliers: Path, tmp_path: Path) -> None:
    """Scales are recorded in the order of the first source, which such a source no longer has."""
    pruned, out = tmp_path / "pruned", tmp_path / "out"
    quality = ("--preset", "quality", "--block-epochs", 0, "--end-epochs", 0, *CALIBRATION)
    assert cli("sparsify", outliers, pruned, "--pattern", "2_8", *quality).code == 0
    assert cli("quantize", pruned, out, "--method", "gptq", *CALIBRATION).code == 0
    assert all(set(makers) == set(NORMS) for makers in read_scales(Checkpoint.open(out)).values())
    for source in (pruned, outliers):
        assert cli("verify", out, "--source", source).code == 0


def test_permuted_while_they_are_scaled(cli: Cli, outliers: Path, tmp_path: Path) -> None:
    """Preset quality scales the source's channels and permutes them in one conversion."""
    quality = ("--preset", "quality", "--block-epochs", 0, "--end-epochs", 0, *CALIBRATION)
    assert cli("convert", outliers, tmp_path / "out", *quality).code == 0
    assert any(UP in makers for makers in read_scales(Checkpoint.open(tmp_path / "out")).values())
    assert cli("verify", tmp_path / "out", "--source", outliers).code == 0


def test_transformers_computes_the_logits_of_the_source(cli: Cli, outliers: Path, tmp_path: Path) -> None:
    """And not without smoothing: the large channels take the codes of the others."""
    found = []
    for flag in ("--smooth", "--no-smooth"):
        out = tmp_path / flag
        assert cli("convert", outliers, out, flag, *UNPRUNED).code == 0
        found.append(relative_error(out, outliers))
    assert found[0] < ROUNDING < found[1]
