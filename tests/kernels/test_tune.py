"""`slideconvert tune`: which linears it measures, that it goes on where it stopped, and what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from slideconvert.api import tuning
from slideconvert.api.options import TuneOptions
from slideconvert.api.tuned_linears import MODELS, linears_of
from slideconvert.api.tuning import coverage, measure
from slideconvert.cli import doctor
from slideconvert.core import choices
from slideconvert.errors import InputError
from slideconvert.kernels.backends import table
from slideconvert.kernels.backends.choose import choose
from slideconvert.kernels.backends.rule import BUCKETS
from slideconvert.kernels.backends.table import Table, key_of
from slideconvert.kernels.bench_common import MODELS as BENCHED
from tests.conftest import MAGNITUDE, Cli
from tests.helpers.fake_gpu import CUDA, SERVER, FewDense, fake_gpu, forget


def times(name: str, tokens: int) -> float:
    return {"few_dense": 0.5, "stock": 1.0}.get(name, 2.0)


def unseen(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


SHAPES = TuneOptions(shape="64x96,32x96", pattern="2:4,2_8", scheme="int8")


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No time is measured twice: dense ways once for all patterns. Then loading measures nothing."""
    linears = linears_of(None, SHAPES)
    assert [str(spec) for spec in linears] == ["64x96 int8 2:4", "32x96 int8 2:4", "64x96 int8 2:8", "32x96 int8 2:8"]
    # stock, dense, int_mm and few_dense of two shapes; cusparselt of two patterns of both
    everything = 2 * (3 * len(BUCKETS) + 7) + 4 * len(BUCKETS)
    seen: list[tuple[str, int, int]] = []
    with fake_gpu(monkeypatch, tmp_path, times, FewDense) as clock:
        first = measure(linears, CUDA, SERVER, 40, lambda *told: seen.append(told), clock.now)
        assert (first.measured, first.seconds) == (40, 40) and seen[-1] == ("tuning", 40, everything)
        assert first.left > 0 and coverage(linears, CUDA, SERVER) == (0, 4)
        forget(monkeypatch)
        second = measure(linears, CUDA, SERVER, 10**6, unseen, clock.now)
        assert second.measured == everything - 40 and second.left == 0
        assert len(clock.asked) == everything and coverage(linears, CUDA, SERVER) == (4, 4)
        forget(monkeypatch)
        third = measure(linears, CUDA, SERVER, 10**6, unseen, clock.now)
        assert third.measured == 0 and third.linears == second.linears
        for spec, one in zip(linears, third.linears, strict=True):
            assert choose(spec, CUDA, "auto", SERVER).backend.name == one.route == "few_dense:64,stock"
            assert min(one.speedups.values()) >= 1 and one.speedups[64] == 2.0 and one.ways[128] == "stock"
        assert len(clock.asked) == everything


def test_what_could_not_run_is_tried_again_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In every run of tune, for instance with more memory; once, whatever the number of patterns."""
    linears = linears_of(None, SHAPES)
    with fake_gpu(monkeypatch, tmp_path, lambda name, tokens: None if tokens == 16384 else 1.0) as clock:
        assert measure(linears, CUDA, SERVER, 10**6, unseen, clock.now).left == 0
        failed = [asked for asked in clock.asked if asked[1] == 16384]
        assert len(failed) == 2 * 3 + 4
        clock.asked.clear()
        again = measure(linears, CUDA, SERVER, 10**6, unseen, clock.now)
        assert clock.asked == [*clock.asked] and {tokens for _, tokens in clock.asked} == {16384}
        assert again.linears[0].ways[16384] == "stock" and 16384 not in again.linears[0].chosen


def test_a_run_that_is_stopped_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    linears = linears_of(None, SHAPES)

    def stopped(stage: str, done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with fake_gpu(monkeypatch, tmp_path, times) as clock:
        with pytest.raises(KeyboardInterrupt):
            measure(linears, CUDA, SERVER, 10**6, stopped, clock.now)
        forget(monkeypatch)
        measure(linears, CUDA, SERVER, 10**6, unseen, clock.now)
        assert len(set(clock.asked)) < len(clock.asked)  # of another shape or pattern
        assert len(clock.asked) == 2 * 3 * len(BUCKETS) + 4 * len(BUCKETS)


def test_models_have_the_shapes_that_are_benchmarked() -> None:
    assert tuple(MODELS) == choices.SHAPED and set(MODELS) == set(BENCHED)
    for model, layers in BENCHED.items():
        options = TuneOptions(model=model, pattern="2:8", scheme="fp8", host="vllm")
        assert {(spec.rows, spec.columns) for spec in linears_of(None, options)} == set(layers.values()), model
        halves = linears_of(None, TuneOptions(model=model, pattern="2:8", scheme="fp8", host="vllm", ranks=2))
        n, k = layers["down"]
        assert (n, k // 2) in {(spec.rows, spec.columns) for spec in halves}
    plain = linears_of(None, TuneOptions(model="Qwen2.5-7B", pattern="2:8", scheme="int8"))
    assert {(spec.rows, spec.columns): names for spec, names in plain.items()} == {
        (3584, 3584): ["q_proj", "o_proj"],
        (512, 3584): ["k_proj", "v_proj"],
        (18944, 3584): ["gate_proj", "up_proj"],
        (3584, 18944): ["down_proj"],
    }
    every = linears_of(None, TuneOptions(model="Qwen2.5-7B"))
    assert len(every) == 4 * 2 * 4


def test_a_checkpoint_is_tuned_as_it_is_served(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "--scheme", "int8", "--pattern", "2:8").code == 0

    def found(**words: Any) -> dict[str, list[str]]:
        return {str(spec): names for spec, names in linears_of(tmp_path / "out", TuneOptions(**words)).items()}

    assert found() == {
        "64x64 int8 2:8": ["q_proj", "o_proj"],
        "32x64 int8 2:8": ["k_proj", "v_proj"],
        "88x64 int8 2:8": ["gate_proj", "up_proj"],
        "64x88 int8 2:8": ["down_proj"],
    }
    assert found(host="vllm", ranks=2) == {
        "64x64 int8 2:8": ["qkv_proj"],
        "88x64 int8 2:8": ["gate_up_proj"],
        "64x32 int8 2:8": ["o_proj"],
        "64x44 int8 2:8": ["down_proj"],
    }


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "which linears to tune?"),
    "both": ({"model": "Qwen2.5-7B", "shape": "8x8"}, "which linears to tune?"),
    "shape": ({"shape": "64"}, "--shape 64 is no shape (write rows and columns: --shape 4608x3584)"),
    "zero": ({"shape": "0x64"}, "is no shape"),
    "model": ({"model": "Qwen2.5-8B"}, "did you mean Qwen2.5-7B?"),
    "scheme": ({"shape": "8x8", "scheme": "int4"}, "unknown scheme 'int4'"),
    "pattern": ({"shape": "8x8", "pattern": "1x16:50%"}, "only 2:L patterns are tuned"),
    "host": ({"shape": "8x8", "host": "tensorrt"}, "unknown host 'tensorrt'"),
    "ranks": ({"shape": "8x8", "ranks": 2}, "--ranks has no effect: only vLLM divides linears"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_tuned_is_refused(case: str) -> None:
    words, said = WRONG[case]
    with pytest.raises(InputError) as refused:
        linears_of(None, TuneOptions(**words))
    assert said in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(cli: Cli) -> None:
    refused = cli("tune", "--model", "Qwen2.5-7B")
    assert refused.code == 2 and "\n" not in refused.err.strip()
    assert "there is no CUDA GPU here to measure on (run tune on the machine that serves the model)" in refused.err


def test_the_table_and_the_json_say_what_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Cli) -> None:
    monkeypatch.setattr(tuning, "choose_device", lambda name: "cuda:0")
    with fake_gpu(monkeypatch, tmp_path, lambda name, tokens: {"few_dense": 0.5, "dense": 1}.get(name, 2.0), FewDense):
        words = ("tune", "--shape", "64x96", "--pattern", "2:8", "--scheme", "int8")
        shown = cli(*words)
        assert shown.code == 0 and "few_dense" in shown.out and "2.00" in shown.out, shown
        assert "52 times measured" in shown.out
        found = json.loads(cli(*words, "--json").out)
    [linear] = found["linears"]
    assert found["measured"] == 0 == found["left"] and found["key"]["gpu"] == "Some GPU"
    assert linear["route"] == "few_dense:64,dense" and linear["speedups"] == {
        str(bucket): 2.0 if bucket <= 64 else 1.0 for bucket in BUCKETS
    }


NOISY = """
import contextlib, logging, sys
logging.getLogger("noisy").addHandler(logging.StreamHandler(sys.stdout))
print("imported")
HOST = None

@contextlib.contextmanager
def standing_alone():
    logging.getLogger("noisy").warning("ready")
    yield
"""


def test_what_vllm_logs_is_no_part_of_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its handler writes to the stdout that it finds when it is imported."""
    (tmp_path / "noisy_stock.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tuning, "STOCK_MODULE", "noisy_stock")
    monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: name)
    with tuning.host_of("vllm"):
        click.echo("{}")
    said = capsys.readouterr()
    assert said.out == "{}\n" and said.err == "imported\nready\n"


def test_doctor_says_what_the_tables_cover(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, source: Path, tmp_path: Path
) -> None:
    """The cache, its tables, and how many linears of a checkpoint load without measuring; nothing is measured."""
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "--scheme", "int8", "--pattern", "2:8").code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = json.loads(cli("doctor", "--json").out)["kernel_cache"]
    assert before == {"path": str(tmp_path / "slidesparse"), "fault": "", "tables": []}
    with fake_gpu(monkeypatch, tmp_path, times) as clock:
        monkeypatch.setattr(doctor, "devices", lambda: [CUDA])
        some = linears_of(None, TuneOptions(shape="64x64,32x64", pattern="2:8", scheme="int8"))
        measure(some, CUDA, doctor.TORCH, 10**6, unseen, clock.now)
        asked = len(clock.asked)
        [told] = doctor.kernel_cache()["tables"]
        assert (told["gpu"], told["host"], told["linears"], told["used"]) == ("Some GPU", "transformers", 4, True)
        covered = doctor.covered(tmp_path / "out", CUDA)
        assert covered == {"transformers": [2, 4], "vllm": [0, 4]} and len(clock.asked) == asked
        shipped = Table(replace(key_of(CUDA, "vllm", "0.24.0"), torch="2.11.0+cu130"))
        for bucket in BUCKETS:
            shipped.put("64x64 int8 2:inf", "stock", bucket, 1.0)
        (tmp_path / "shipped").mkdir()
        (tmp_path / "shipped" / "gpu.json").write_text(shipped.text())
        monkeypatch.setattr(table, "SHIPPED", tmp_path / "shipped")
        monkeypatch.setattr(table, "_TABLES", {})
        monkeypatch.setattr(doctor, "installed", {"vllm": "0.24.1"}.__getitem__)
        monkeypatch.setattr(torch, "__version__", "2.11.1")
        assert doctor.covered(tmp_path / "out", CUDA)["vllm"] == [1, 4]
    (tmp_path / "slidesparse" / "times-damaged.json").write_text("{")
    tables = json.loads(cli("doctor", "--json").out)["kernel_cache"]["tables"]
    assert [one.get("fault", "")[:14] for one in tables if "damaged" in one["file"]] == ["it is damaged:"]
    (tmp_path / "slidesparse").chmod(0o777)
    told = json.loads(cli("doctor", "--json").out)["kernel_cache"]
    assert "others may write to it (chmod go-w" in told["fault"] and told["tables"] == []
    assert "kernel cache" in cli("doctor").out
