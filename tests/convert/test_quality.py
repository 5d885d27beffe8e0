"""Quality apart from intact files: warnings before and after the work, and limits beyond which nothing is published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slideconvert.calibrate.doubts import repeated
from slideconvert.plan.plan import SMOOTHED
from slideconvert.report.limits import Limits, QualityError
from slideconvert.report.quality import warnings
from tests.conftest import Cli
from tests.convert.test_report import held_out_report, measured_report, sample_report
from tests.helpers.calibrated import DEMO_TEXT

TEXT = ("--calibration", DEMO_TEXT / "calibration.jsonl")
FEW = (*TEXT, "--samples", 4, "--length", 128)
ENOUGH = (*TEXT, "--samples", 32, "--length", 128)
PLENTY = (*TEXT, "--samples", 64, "--length", 128)
MILD = ("--method", "wanda", "--pattern", "2_8")


def test_a_ruined_model_has_intact_files_and_a_warning(
    cli: Cli, short_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of all groups pruned and four bits, fitted to too few tokens: every file is as it was written."""
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    out = tmp_path / "out"
    made = cli("convert", short_demo, out, "--method", "gqsa", "--block-epochs", 0, "--end-epochs", 0, *FEW)
    assert made.code == 0 and cli("verify", out, "--source", short_demo, "-q").code == 0
    assert "re-read, intact" in made.out and "sound" not in made.out and "WARNING  The outputs of" in made.out
    assert "warning: Calibration fits 384 tokens to linears of up to" in made.err
    assert made.err.index("warning:") < made.err.index("calibrate"), "before the work"
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert 'class="verdict warned"' in page and "Calibration fits 384 tokens" in page
    assert "**Warning**: The outputs of" in card and "Calibration fits 384 tokens" in card
    assert card.index("## Measured") < card.index("**Warning**") < card.index("| source | this checkpoint |")


def test_a_good_model_has_no_warning(cli: Cli, short_demo: Path, tmp_path: Path) -> None:
    made = cli("convert", short_demo, tmp_path / "out", "--method", "gptq", "--pattern", "2_inf", *PLENTY)
    assert made.code == 0 and "quality  no warning" in made.out and "warning" not in made.err
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["held_out"]["kl"] < 0.1 and told["notes"] == [SMOOTHED]


def test_quality_that_nothing_measures_is_not_claimed(cli: Cli, short_demo: Path, tmp_path: Path) -> None:
    made = cli("convert", short_demo, tmp_path / "out", "--method", "magnitude")
    assert "quality  not measured" in made.out and "no warning" not in made.out
    assert "Its quality was not measured" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("flag", ["--max-kl", "--max-output-error"])
def test_beyond_a_limit_nothing_is_published_until_a_higher_one_allows_it(
    cli: Cli, short_demo: Path, tmp_path: Path, flag: str
) -> None:
    """The finished work stays: resuming writes what an unlimited run writes."""
    out, free = tmp_path / "out", tmp_path / "free"
    refused = cli("convert", short_demo, out, *MILD, *ENOUGH, flag, 1e-6, "-q")
    assert refused.code == 1 and f"{flag} allows 1e-06" in refused.err and "--resume" in refused.err
    assert [path.name for path in out.iterdir()] == [".slideconvert-partial"]
    assert cli("verify", out, "-q").code == 2
    assert cli("convert", short_demo, out, *MILD, *ENOUGH, flag, 10, "--resume", "-q").code == 0
    assert cli("convert", short_demo, free, *MILD, *ENOUGH, "-q").code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in free.iterdir() if path.is_file()
    }


def test_a_limit_holds_on_a_text_without_calibration(cli: Cli, short_demo: Path, tmp_path: Path) -> None:
    words = ("--method", "magnitude", "--text", DEMO_TEXT / "evaluation.jsonl", "--sequences", 2)
    refused = cli("convert", short_demo, tmp_path / "out", *words, "--max-kl", 1e-6, "-q")
    assert refused.code == 1 and "KL divergence on the text" in refused.err


def test_one_document_repeated_is_told(cli: Cli, short_demo: Path, tmp_path: Path) -> None:
    document = json.loads((DEMO_TEXT / "calibration.jsonl").read_text().splitlines()[0])["text"][:400]
    (tmp_path / "text.jsonl").write_text((json.dumps({"text": document}) + "\n") * 40)
    words = ("--calibration", tmp_path / "text.jsonl", "--samples", 24, "--length", 64)
    made = cli("convert", short_demo, tmp_path / "out", *MILD, *words)
    assert made.code == 0 and "The calibration text repeats itself" in made.err


def test_repetition_is_counted_by_phrases() -> None:
    """Against sets of tuples; text whose every token is new repeats nothing."""
    numbers = torch.arange(4 * 40).view(4, 40)
    assert repeated(numbers) == 0 and repeated(numbers[:1].repeat(4, 1)) == 0.75
    mixed = torch.randint(0, 2, (6, 30), generator=torch.Generator().manual_seed(1))
    phrases = [tuple(row[place : place + 16].tolist()) for row in mixed for place in range(15)]
    assert repeated(mixed) == pytest.approx(1 - len(set(phrases)) / len(phrases))
    assert repeated(numbers[:, :10]) == 0


def test_warnings_name_their_figures() -> None:
    assert not warnings(held_out_report()) and not warnings(sample_report(1))
    assert "KL divergence 0.9 nats per token on held-out calibration text" in warnings(held_out_report(kl=0.9))[0]
    assert "KL divergence 2 nats per token on the text" in warnings(measured_report(kl_mean=2.0))[0]
    assert "Only 256 tokens" in warnings(held_out_report(sequences=1, length=256))[0]
    nan = float("nan")
    assert warnings(held_out_report(kl=nan)), "what is not a number is not near the source"
    report = held_out_report()
    worse = replace(report, layers=(replace(report.layers[0], output_error=0.8), *report.layers[1:]))
    assert "of 1 of 13 linears" in warnings(worse)[0] and report.layers[0].name in warnings(worse)[0]


def test_limits_are_kept_or_named() -> None:
    report = held_out_report()
    Limits().check(report)
    Limits(kl=0.1, output_error=0.5).check(report)
    with pytest.raises(QualityError, match=r"held-out calibration text is 0.02791, --max-kl allows 0.02 .nothing was"):
        Limits(kl=0.02).check(report)
    with pytest.raises(QualityError, match=r"the output error of model.*allows 0.01 .\d+ figures exceed their limits"):
        Limits(output_error=0.01).check(report)
    with pytest.raises(QualityError):
        Limits(kl=1.0).check(held_out_report(kl=float("nan")))
