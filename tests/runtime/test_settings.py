"""The settings that users give for running checkpoints: in config.json, and in the environment."""

from __future__ import annotations

from typing import Any

import pytest

from slideconvert.kernels.backends.choose import Settings
from slideconvert.runtime.slidesparse_record import RuntimeSettings, read_settings

FAMILIES = [("cusparselt", "dense", "reference"), ("group_gemm", "reference")]


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("BACKEND", "MEMORY", "MEASURE", "FUSE"):
        monkeypatch.delenv(f"SLIDESPARSE_{word}", raising=False)


def test_the_defaults_are_those_of_the_kernels() -> None:
    """The record stands alone and cannot take them from there. Fusing is no choice of a kernel."""
    assert read_settings(None, FAMILIES, "here") == RuntimeSettings()
    assert vars(RuntimeSettings()) == {**vars(Settings()), "fuse": None}


def test_the_environment_comes_before_config_json(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"backend": "dense", "memory": 0.5, "measure": 10}
    assert read_settings(config, FAMILIES, "here") == RuntimeSettings("dense", 0.5, 10.0)
    monkeypatch.setenv("SLIDESPARSE_MEASURE", "0")
    monkeypatch.setenv("SLIDESPARSE_BACKEND", "both")
    assert read_settings(config, FAMILIES, "here") == RuntimeSettings("both", 0.5, 0.0)
    assert read_settings(None, FAMILIES, "here") == RuntimeSettings("both", 0.0, 0.0)


def test_a_backend_of_one_kind_of_linears_means_auto_for_others() -> None:
    asked = RuntimeSettings("dense", 1.0)
    assert asked.of(FAMILIES[0]) == asked and asked.of(FAMILIES[1]) == RuntimeSettings("auto", 1.0)
    assert RuntimeSettings("both").of(FAMILIES[1]).backend == "both"


WRONG: list[tuple[Any, str]] = [
    ("dense", "slidesparse_runtime is 'dense', an object was expected"),
    ({"backends": "auto"}, "has the unknown key 'backends' (known: backend, memory, measure, fuse)"),
    ({"backend": "fast"}, "asks for backend 'fast' (use one of auto, both, cusparselt, dense, reference, group_gemm)"),
    ({"memory": -1}, "asks for memory -1 (use a number from 0 on)"),
    ({"memory": True}, "asks for memory True (use a number from 0 on)"),
    ({"measure": "long"}, "asks for measure 'long' (use a number from 0 on)"),
    ({"fuse": "perhaps"}, "asks for fuse 'perhaps' (use true or false)"),
    ({"fuse": 2}, "asks for fuse 2 (use true or false)"),
    ({"measure": None}, "asks for measure None (use a number from 0 on)"),
]


@pytest.mark.parametrize(("word", "meant"), [("0", False), ("false", False), ("1", True), ("TRUE", True)])
def test_a_switch_in_the_environment(monkeypatch: pytest.MonkeyPatch, word: str, meant: bool) -> None:
    monkeypatch.setenv("SLIDESPARSE_FUSE", word)
    for config in (None, {"fuse": not meant}):
        assert read_settings(config, FAMILIES, "here").fuse is meant
    monkeypatch.delenv("SLIDESPARSE_FUSE")
    assert read_settings({"fuse": meant}, FAMILIES, "here").fuse is meant


@pytest.mark.parametrize(("config", "said"), WRONG)
def test_wrong_settings_are_refused(config: Any, said: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_settings(config, FAMILIES, "here")
    assert str(refused.value).startswith("here: ") and said in str(refused.value)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_MEMORY", "much")
    with pytest.raises(ValueError, match="SLIDESPARSE_MEMORY is 'much' \\(use a number from 0 on\\)"):
        read_settings(None, FAMILIES, "here")
