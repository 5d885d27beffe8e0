"""doctor and the model card describe weights in the GQSA format: a scale for each group of columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slideconvert.cli import doctor
from slideconvert.kernels.backends.choose import BackendChoice, choose
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.spec import LinearSpec
from slideconvert.report.loading import how_to_load
from tests.conftest import Cli
from tests.helpers.serving import grouped


def doctor_linears(cli: Cli, checkpoint: Path) -> dict[str, tuple[list[str], int]]:
    rows = json.loads(cli("doctor", checkpoint, "--device", "cpu", "--json").out)["linears"]
    assert {(row["backend"], row["why"]) for row in rows} == {("reference", "plain torch: the device is cpu")}
    return {row["kind"]: (row["linears"], row["number"]) for row in rows}


def test_doctor_explains_how_gqsa_linears_run(cli: Cli, tmp_path: Path) -> None:
    assert doctor_linears(cli, grouped(tmp_path / "gqs")) == {
        "64x64 W4A16 g8 asymmetric S50.0%": (["q_proj", "o_proj"], 6),
        "32x64 W4A16 g8 asymmetric S50.0%": (["k_proj", "v_proj"], 6),
        "88x64 W4A16 g8 asymmetric S50.0%": (["gate_proj", "up_proj"], 6),
        "64x88 W4A16 g8 asymmetric S50.0%": (["down_proj"], 3),
    }
    mixed = doctor_linears(cli, grouped(tmp_path / "mixed", "mixed"))
    assert mixed["64x64 int8 2:8"] == (["q_proj", "o_proj"], 4)
    assert mixed["64x64 W4A16 g8 asymmetric S50.0%"] == (["q_proj", "o_proj"], 2)
    assert "W4A16 g8" in cli("doctor", tmp_path / "mixed" / "out", "--device", "cpu").out


def test_doctor_chooses_a_backend_for_the_stored_layout(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice on a GPU depends on it."""
    asked: list[tuple[str, int]] = []

    def noted(spec: LinearSpec, device: torch.device, _: object) -> BackendChoice:
        if isinstance(spec, GroupSpec):
            asked.append((spec.layout, spec.kept))
        return choose(spec, device)

    monkeypatch.setattr(doctor, "choose", noted)
    doctor_linears(cli, grouped(tmp_path / "mixed", "mixed"))
    assert ("gqs", 256) in asked and ("dense", 64 * 88 // 4) in asked


def test_the_dense_layout_stores_every_group(cli: Cli, tmp_path: Path) -> None:
    assert "64x88 W4A16 g8 asymmetric S0.0%" in doctor_linears(cli, grouped(tmp_path, layout="dense"))


def test_doctor_names_the_backends_of_each_device(cli: Cli) -> None:
    for device, backends in json.loads(cli("doctor", "--json").out)["backends"].items():
        assert backends["reference"] == ""
        assert ("it needs a CUDA device, not cpu" in backends["group_gemm"]) == (device == "cpu")


@pytest.mark.parametrize(
    ("layout", "schemes", "by_groups", "packed", "contains"),
    [
        ("gqs", ["w4a16"], True, "gqs", ""),
        ("gqs", ["w4a16"], False, "", "pack-quantized"),
        ("gqs", ["int8"], False, "", "computes in INT8 or FP8"),
        ("slide", ["w4a16"], False, "", "pack-quantized"),
        ("slide", ["int8", "w4a16"], False, "slide", ""),
        ("dense", ["w4a16"], True, "", "pack-quantized"),
        ("dense", ["int8", "w4a16"], False, "", "computes in INT8 or FP8"),
        ("dense", [], False, "", ""),
    ],
)
def test_how_to_load_follows_what_is_stored(
    layout: str, schemes: list[str], by_groups: bool, packed: str, contains: str
) -> None:
    text = how_to_load(layout, schemes, by_groups=by_groups, repo="org/model")
    assert ("in the dense layout, which" in text) == (not packed) and contains in text
    assert (f"in the {packed} layout: " in text) == bool(packed)
    assert ("slideconvert relayout" in text) == bool(packed) and "vllm serve org/model" in text
    assert ("pack-quantized" in text) == (not packed and "w4a16" in schemes)
    assert not {"LAYOUT", "DESCRIPTION", "PATH", "CKPT"} & set(text.split())


def test_the_card_of_each_layout(tmp_path: Path) -> None:
    gqs, dense = ((grouped(tmp_path / name, layout=name) / "README.md").read_text() for name in ("gqs", "dense"))
    assert "The weights are in the gqs layout: block sparse rows" in gqs and "pack-quantized" not in gqs
    assert "The weights are in the dense layout" in dense and "pack-quantized" in dense
