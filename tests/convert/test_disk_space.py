"""The disk that a conversion needs: the output, what --resume continues from, hidden states on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import slideconvert
from slideconvert import ConvertOptions
from slideconvert.checkpoint.disk import BESIDE
from slideconvert.plan.calibration import Running
from slideconvert.plan.disk import DiskUse, disk_use
from tests.conftest import Cli
from tests.helpers.demo import DEMO, TEXT

CALIBRATION = {"calibration": str(TEXT), "samples": 4, "length": 32, "device": "cpu"}
TRAINED = ConvertOptions(method="gqsa", sparsity=0.5, block_epochs=0, end_epochs=2, keep_on="disk", **CALIBRATION)
"""Trained end to end, with hidden states on disk: there is something of every kind."""
WORDS = ("--method", "gqsa", "--sparsity", 0.5, "--block-epochs", 0, "--end-epochs", 2, "--keep-on", "disk")
WORDS += ("--calibration", TEXT, "--samples", 4, "--length", 32, "--device", "cpu")


def use_of(options: ConvertOptions, keep_on: str = "device") -> DiskUse:
    return disk_use(slideconvert.plan(DEMO, options), keep_on, Running("cpu"))


class Full:
    """A disk with so many free bytes."""

    free = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[Full]:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    return Full


def test_the_estimate_is_what_lies_on_the_disk(tmp_path: Path, short_demo: Path) -> None:
    """Before the output is published. Of the state of the training one file is complete, and one was being written."""
    found: dict[str, int] = {}

    def look(stage: str, done: int, total: int) -> None:
        if stage == "finish" and not found:
            for path in (tmp_path / "out").rglob("*.safetensors"):
                kind = path.name.partition("-")[0]
                found[kind] = found.get(kind, 0) + path.stat().st_size
            found["raw"] = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.raw"))

    slideconvert.convert(short_demo, tmp_path / "out", TRAINED, progress=look)
    use = disk_use(slideconvert.plan(short_demo, TRAINED), "disk", Running("cpu"))
    assert use.layers == pytest.approx(found["layer"] + found["trained"], rel=0.05)
    assert 0.7 * use.training / 2 < found["training"] < 1.05 * use.training / 2  # the best state is in it or not
    assert use.hidden == pytest.approx(found["raw"], rel=0.05)
    assert use.total == use.output + use.layers + use.training + use.hidden


@pytest.mark.parametrize("kind", ["resume", "hidden"])
def test_a_disk_without_space_for_what_lies_beside_the_output_is_refused(
    cli: Cli, tmp_path: Path, disk: type[Full], kind: str
) -> None:
    use = use_of(TRAINED, "disk")
    disk.free = use.total - getattr(use, kind) // 2
    refused = cli("convert", DEMO, tmp_path / "out", *WORDS)
    assert refused.code == 75 and not (tmp_path / "out").exists()
    for said in (
        "the disk needs 0.0",
        "the state for --resume 0.00 GB",
        "hidden states 0.00 GB",
        "omit --keep-on disk",
    ):
        assert said in refused.err, refused.err
    planned = cli("plan", DEMO, tmp_path / "out", *WORDS)
    assert (
        planned.code == 0
        and "WARNING" in planned.out
        and "needs less: omit --keep-on disk, --end-epochs 0" in (" ".join(planned.out.split()))
    )


def test_without_calibration_only_the_output_counts() -> None:
    plan = slideconvert.plan(DEMO, ConvertOptions(method="magnitude"))
    assert disk_use(plan, "device", Running("cpu")) == DiskUse(plan.bytes_after + BESIDE, 0, 0, 0)


def test_what_an_interrupted_run_has_written_is_not_needed_again(
    tmp_path: Path, disk: type[Full], interrupted: Callable[[Path], int]
) -> None:
    options = ConvertOptions(method="magnitude", resume=True)
    need = use_of(ConvertOptions(method="magnitude")).total
    disk.free = need
    written = interrupted(tmp_path / "out")
    assert written > 1_000_000
    disk.free = need - written - 1
    with pytest.raises(slideconvert.SlideConvertError, match="the disk needs"):
        slideconvert.convert(DEMO, tmp_path / "out", options)
    disk.free += 1
    assert slideconvert.convert(DEMO, tmp_path / "out", options).verified


@pytest.fixture
def interrupted() -> Callable[[Path], int]:
    """A conversion that ends after its weights are written, and the bytes that it leaves."""

    def run(out: Path) -> int:
        def stop(stage: str, done: int, total: int) -> None:
            if stage == "verify":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            slideconvert.convert(DEMO, out, ConvertOptions(method="magnitude"), progress=stop)
        return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())

    return run
