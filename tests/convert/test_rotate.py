"""`rotate` from the command to logits: the function stays, pruning loses less, and what is not sound is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import slideconvert
from slideconvert import RotateOptions
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.checkpoint.staging import file_sha256
from slideconvert.models.families import FAMILIES
from slideconvert.plan.calibration import Calibration
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_model, write_text, write_tokenizer
from tests.helpers.family_models import SHAPES, build
from tests.helpers.mortal import STAGING, Death, die
from tests.twins.rotate import estimated_loss

TOKENS = torch.randint(2, SHAPES["vocab_size"], (3, 24), generator=torch.Generator().manual_seed(0))
BRIEF = ("--steps", 6, "--device", "cpu", *FLAGS)
STREAM = [name for name, family in FAMILIES.items() if family.residual_norms]
VALUES = [name for name, family in FAMILIES.items() if family.heads and not family.heads.norm]
MATRICES, NOTE = Path("rotation/rotations.safetensors"), Path("rotation/rotation.json")
ROUNDINGS = 1e-5
"""Float32 logits of size 1 to 10 that pass a few hundred roundings of 2^-24 each."""


def logits(folder: Path) -> Tensor:
    """Of the model as transformers without us loads it, every tensor accounted for."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    with torch.inference_mode():
        found: Tensor = model.eval()(input_ids=TOKENS, use_cache=False).logits
    return found


def write_float32(folder: Path, family: str, **config: Any) -> Path:
    build(family, **config).float().save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "qwen2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `text` and the `rotated` model; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "model", "qwen2")
    text = write_text(folder / "text.jsonl")
    options = RotateOptions(calibration=str(text), samples=9, length=24, steps=30, device="cpu")
    slideconvert.rotate(folder / "model", folder / "rotated", options)
    return folder


@pytest.fixture
def rotated(made: Path, tmp_path: Path) -> Path:
    """A copy of the rotated model, to be changed."""
    shutil.copytree(made / "rotated", tmp_path / "rotated")
    return tmp_path / "rotated"


@pytest.mark.parametrize(
    ("family", "parts"), [*((name, "all") for name in STREAM), *((name, "heads") for name in VALUES)]
)
def test_a_rotated_model_computes_the_same(cli: Cli, tmp_path: Path, text: Path, family: str, parts: str) -> None:
    """In float32, where rounding hides no mistake; and the weights are others."""
    source, out = write_float32(tmp_path / "source", family), tmp_path / "out"
    done = cli("rotate", source, out, "--calibration", text, *BRIEF, "--parts", parts, "-q")
    assert done.code == 0, done.err
    before, after = logits(source), logits(out)
    assert float((before - after).abs().amax()) < ROUNDINGS * float(before.abs().amax())
    old, new = pico.read(source), pico.read(out)
    values = [name for name in old if name.endswith(("v_proj.weight", "qkv_proj.weight"))]
    assert values and all(float((old[name] - new[name]).abs().amax()) > 1e-3 for name in values)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert ("model.embed_tokens.weight" in changed) == (parts == "all")
    assert cli("verify", out, "--source", source, "--device", "cpu").code == 0


def test_biases_of_all_linears_take_part(cli: Cli, tmp_path: Path, text: Path) -> None:
    """Those of o_proj and down_proj are in the stream, those of v_proj in the values of heads."""
    source = write_float32(tmp_path / "source", "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    assert cli("rotate", source, tmp_path / "out", "--calibration", text, *BRIEF, "-q").code == 0
    before, after = logits(source), logits(tmp_path / "out")
    assert float((before - after).abs().amax()) < ROUNDINGS * float(before.abs().amax())
    assert cli("verify", tmp_path / "out", "--source", source, "--device", "cpu").code == 0


def test_the_note_and_the_summary_tell_what_became_better(
    cli: Cli, model: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("rotate", model, "--calibration", text, *FLAGS, "--steps", 30, "--device", "cpu")
    told = json.loads(cli(*words[:2], tmp_path / "a", *words[2:], "--json").out)
    assert all(after < before for before, after in zip(told["loss_before"], told["loss_after"], strict=True))
    assert told["untied_head_bytes"] == 2 * pico.VOCABULARY * pico.HIDDEN
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and "slidesparse_config" not in config
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    shown = cli(*words[:2], tmp_path / "b", *words[2:], "-v")
    assert "was tied to the embedding" in shown.out and "re-read, intact" in shown.out and "before" in shown.out
    assert "statistics" in shown.err and "rotate" in shown.err  # the progress bars
    assert pico.files(tmp_path / "a") == pico.files(tmp_path / "b")


def losses_by_hand(folder: Path, tokens: Tensor, length: int) -> list[float]:
    """The mean estimated loss of the linears of each layer of a Llama-like model, from inputs that transformers gives
    them, in the basis that the folder is written in."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: dict[str, Tensor] = {}
    linears = {name: module for name, module in model.model.layers.named_modules() if hasattr(module, "in_features")}
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(input_ids=tokens, use_cache=False)
    found: dict[str, list[float]] = {}
    for name, module in linears.items():
        inputs, weight = seen[name].double().numpy(), module.weight.detach().double().numpy()
        norm = {"q": "input", "k": "input", "v": "input", "g": "post_attention", "u": "post_attention"}.get(
            name.rpartition(".")[2][0]
        )
        number = name.partition(".")[0]
        if norm:
            gain = model.get_parameter(f"model.layers.{number}.{norm}_layernorm.weight").detach().double().numpy()
            inputs, weight = inputs / gain, weight * gain
        unmoved = [np.eye(size) for size in weight.shape[::-1]]
        loss = estimated_loss(weight, inputs.T @ inputs / len(inputs), unmoved[0], unmoved[1], length)
        found.setdefault(number, []).append(loss)
    return [sum(losses) / len(losses) for losses in found.values()]


def test_the_reported_losses_are_those_of_the_models(tmp_path: Path, text: Path) -> None:
    """Before, of the source; after, of the rotated model as it was written: what was searched for is what came out."""
    source = write_float32(tmp_path / "source", "qwen3")
    calibration = {"samples": 9, "length": 24}
    options = RotateOptions(calibration=str(text), steps=20, device="cpu", precision="float32", **calibration)
    record = slideconvert.rotate(source, tmp_path / "out", options).record
    tokens = calibration_tokens(Calibration(str(text), **calibration), Checkpoint.open(source))
    # H has a condition of some thousands, and float32 rounds by 2^-24.
    assert list(record.before) == pytest.approx(losses_by_hand(source, tokens, 4), rel=1e-3)
    assert list(record.after) == pytest.approx(losses_by_hand(tmp_path / "out", tokens, 4), rel=1e-3)
    assert sum(record.after) < 0.9 * sum(record.before)


def test_convert_takes_the_result_and_tells_where_it_came_from(cli: Cli, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--calibration", made / "text.jsonl", *FLAGS, "--pattern", "2_4", "--device", "cpu")
    assert cli("convert", made / "rotated", out, *words, "-q").code == 0
    report = json.loads((out / "report.json").read_text())
    assert any("rotated for 2:4" in note and "model" in note for note in report["notes"])
    assert cli("verify", out, "--source", made / "rotated").code == 0
    assert cli("rotate", out, tmp_path / "again", *words).code == 2


def test_options_of_the_search_have_an_effect(cli: Cli, made: Path, tmp_path: Path) -> None:
    matrices = []
    for number, more in enumerate(((), ("--pattern", "2_8"), ("--seed", 1))):
        words = ("--calibration", made / "text.jsonl", *FLAGS, "--steps", 3, "--device", "cpu", "-q", *more)
        assert cli("rotate", made / "model", tmp_path / str(number), *words).code == 0
        matrices.append((tmp_path / str(number) / MATRICES).read_bytes())
    assert len(set(matrices)) == 3


@pytest.mark.parametrize(
    ("family", "words", "what"),
    [
        ("bitnet", (), "attn_sub_norm stands between"),
        ("gemma2", (), "--parts heads"),
        ("olmo2", (), "norms cannot be folded"),
        ("llama", ("--pattern", "2_inf"), "prunes nothing"),
        ("llama", ("--pattern", "2_5"), "unknown pattern"),
        ("llama", ("--parts", "head"), "did you mean heads"),
        ("llama", ("--samples", 100000), "are needed"),
    ],
)
def test_refusals_take_one_line_and_leave_nothing(
    cli: Cli,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
    family: str,
    words: tuple[object, ...],
    what: str,
) -> None:
    source = write_float32(tmp_path / "source", family)
    capfd.readouterr()  # transformers reports what it writes
    refused = cli("rotate", source, tmp_path / "out", "--calibration", text, *BRIEF, *words, "-q")
    assert refused.code == 2 and what in refused.err and len(refused.err.splitlines()) == 1, refused.err
    assert not (tmp_path / "out").exists()


def test_quantized_and_pruned_sources_are_refused(cli: Cli, source: Path, tmp_path: Path, text: Path) -> None:
    foreign = write_tokenizer(pico.w8a8(tmp_path / "w8a8"))
    assert cli("sparsify", *MAGNITUDE, source, tmp_path / "pruned", "--pattern", "2_4", "-q").code == 0
    for refused in (foreign, write_tokenizer(tmp_path / "pruned")):
        done = cli("rotate", refused, tmp_path / "out", "--calibration", text, *BRIEF)
        assert done.code == 2 and "quantized or pruned already" in done.err
        assert not (tmp_path / "out").exists()


def test_a_damaged_source_is_refused_at_once(cli: Cli, model: Path, tmp_path: Path, text: Path) -> None:
    tensors = pico.read(model)
    tensors["model.norm.weight"][5] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    refused = cli("rotate", model, tmp_path / "out", "--calibration", text, *BRIEF)
    assert (
        refused.code == 2 and "model.norm.weight: nan at element 5" in refused.err and "statistics" not in refused.err
    )
    assert not (tmp_path / "out").exists()


def changed(folder: Path, name: Path, tensor: str, by: float, *, known: bool) -> None:
    """Change an element of a file. known: with its hash in the note, as somebody does who hides it."""
    tensors = load_file(folder / name)
    flat = tensors[tensor].flatten()
    flat[7] += by
    tensors[tensor] = flat.view(tensors[tensor].shape)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    if known:
        note = json.loads((folder / NOTE).read_text())
        note["files"][str(name)] = file_sha256(folder / name)
        (folder / NOTE).write_text(json.dumps(note))


WEIGHTS = Path("model.safetensors")
FAULTS = [
    (WEIGHTS, "model.layers.1.mlp.up_proj.weight", 0.01, "up_proj.weight: 1 values are not the source's"),
    (WEIGHTS, "model.layers.0.self_attn.v_proj.bias", 0.01, "v_proj.bias: 1 values"),
    (WEIGHTS, "model.layers.0.self_attn.q_proj.bias", 0.01, "q_proj.bias: differs from the source"),
    (WEIGHTS, "model.norm.weight", 0.1, "model.norm.weight: 1 values"),
    (WEIGHTS, "lm_head.weight", 0.01, "lm_head.weight: 1 values"),
    (MATRICES, "residual", 1e-3, "rotation residual is not orthogonal"),
    (MATRICES, "layers.2.heads", 1e-3, "rotation layers.2.heads is not orthogonal"),
]


@pytest.mark.parametrize(("name", "tensor", "by", "what"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_verify_finds_a_changed_number(
    cli: Cli, made: Path, rotated: Path, name: Path, tensor: str, by: float, what: str
) -> None:
    assert cli("verify", rotated, "--source", made / "model").code == 0
    changed(rotated, name, tensor, by, known=True)
    found = cli("verify", rotated, "--source", made / "model")
    assert found.code == 1 and what in found.err, found.err


def test_verify_finds_another_rotation(cli: Cli, made: Path, rotated: Path) -> None:
    """Orthogonal, but not the one that was folded in."""
    tensors = load_file(rotated / MATRICES)
    tensors["layers.0.heads"] = tensors["layers.0.heads"].flip(-1).contiguous()
    save_file(tensors, rotated / MATRICES)
    found = cli("verify", rotated, "--source", made / "model")
    assert found.code == 1 and "layers.0.self_attn.v_proj.weight" in found.err and "orthogonal" not in found.err


def test_verify_without_source_finds_changed_files(cli: Cli, rotated: Path) -> None:
    assert cli("verify", rotated).code == 0
    changed(rotated, WEIGHTS, "lm_head.weight", 0.01, known=False)
    found = cli("verify", rotated)
    assert found.code == 1 and "sha256 differs" in found.err
    (rotated / MATRICES).unlink()
    assert "is missing" in cli("verify", rotated).err


def test_verify_finds_another_config_and_other_tensors(cli: Cli, made: Path, rotated: Path) -> None:
    config = json.loads((rotated / "config.json").read_text())
    (rotated / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert "rms_norm_eps is 0.001" in cli("verify", rotated, "--source", made / "model").err
    (rotated / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "tie_word_embeddings is True" in cli("verify", rotated, "--source", made / "model").err


@pytest.mark.parametrize("death", [("collect", 1), ("descend", 27 * 2), ("journal", 1), ("rename", 6)], ids=str)
def test_a_killed_rotation_resumes_to_the_same_bytes(
    cli: Cli, made: Path, tmp_path: Path, death: tuple[str, int]
) -> None:
    """Killed while statistics are collected, after a saved state of the search, while weights are written, and when
    small files are renamed."""
    out = tmp_path / "out"
    words = ("--calibration", made / "text.jsonl", *FLAGS, "--steps", 30, "--device", "cpu", "-q")
    die(Death(*death, ("rotate", made / "model", out, *words)))
    assert (out / STAGING).is_dir() and cli("inspect", out).code == 2
    assert cli("rotate", made / "model", out, *words).code == 2
    for other in (("--seed", 3), ("--parts", "heads"), ("--pattern", "2_8")):
        assert cli("rotate", made / "model", out, *words, "--resume", *other).code == 2
    resumed = cli("rotate", made / "model", out, *words, "--resume")
    assert resumed.code == 0, resumed.err
    assert pico.files(out) == pico.files(made / "rotated")


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_the_place_of_what_is_kept_changes_nothing(cli: Cli, made: Path, tmp_path: Path, place: str) -> None:
    words = ("--calibration", made / "text.jsonl", *FLAGS, "--steps", 30, "--device", "cpu", "-q")
    assert cli("rotate", made / "model", tmp_path / "out", *words, "--keep-on", place).code == 0
    assert pico.files(tmp_path / "out") == pico.files(made / "rotated")
