"""`eval --text`: divergence from the first checkpoint, the file that keeps it, positions, reports of convert."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slideconvert.api.options import EvaluateOptions
from slideconvert.cli.common import show
from slideconvert.cli.scores import text_tables
from slideconvert.evaluate import compare
from slideconvert.evaluate.compare import TextProtocol
from slideconvert.evaluate.kept_base import kept_bytes
from slideconvert.models import head
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO, TEXT, converted, text_windows
from tests.twins import scores

WORDS, SEQUENCES, LENGTH = 2048, 3, 48
SHORT = ("--text", TEXT, "--sequences", SEQUENCES, "--length", LENGTH, "--activations", "float")
ROOT = Path(__file__).parents[2]
NATS = 3e-5
"""Two implementations of one float32 forward pass add up products in different orders: a logit of the demo model moves
by some 1e-5, and so does what follows from it, next to the 1e-5 of tests/unit/test_divergence.py."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, short_demo: Path) -> dict[str, Path]:
    """The base, a conversion of it and one that changes it more. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    near = converted(short_demo, folder / "near", scheme="bf16", pattern="2:8")
    return {
        "base": short_demo,
        "near": near,
        "far": converted(short_demo, folder / "far", scheme="bf16", pattern="2:4"),
    }


@pytest.fixture(scope="module")
def logits(models: dict[str, Path]) -> dict[str, np.ndarray]:
    """[sequences, length - 1, words] by transformers alone, for each model."""
    tokens = text_windows(LENGTH, SEQUENCES)
    found = {}
    for name, path in models.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            found[name] = model(tokens).logits[:, :-1].double().numpy()
    return found


def rows(cli: Cli, *words: object) -> list[dict[str, Any]]:
    outcome = cli("eval", *words, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["results"]


@pytest.mark.parametrize("top", [5, 64, WORDS])
def test_every_number_is_that_of_whole_logits(
    cli: Cli, models: dict[str, Path], logits: dict[str, np.ndarray], top: int
) -> None:
    """Of three checkpoints, by a twin that has all their logits at once."""
    tokens = text_windows(LENGTH, SEQUENCES).numpy()[:, 1:]
    found = rows(cli, *models.values(), *SHORT, "--top", top)
    assert [row["ckpt"] for row in found] == [str(path) for path in models.values()]
    losses = {
        name: -np.log([[scores.softmax(one)[token] for one, token in zip(window, came, strict=True)]
                       for window, came in zip(whole, tokens, strict=True)])
        for name, whole in logits.items()
    }  # fmt: skip
    for row, name in zip(found, models, strict=True):
        error, perplexity = scores.standard_error(losses[name]), np.exp(losses[name].mean())
        assert row["perplexity"] == pytest.approx(perplexity, rel=NATS)
        assert row["perplexity_stderr"] == pytest.approx(perplexity * error, rel=1e-3)
        assert (row["sequences"], row["tokens"]) == (SEQUENCES, SEQUENCES * (LENGTH - 1))
    assert found[0]["ratio"] == 1 and all(found[0][name] is None for name in compare.COMPARED[1:])
    for row, name in zip(found[1:], ("near", "far"), strict=True):
        pairs = [list(zip(*both, strict=True)) for both in zip(logits["base"], logits[name], strict=True)]
        expected = np.array([[scores.numbers(p, q, top) for p, q in window] for window in pairs])
        change = losses[name] - losses["base"]
        assert row["ratio"] == pytest.approx(np.exp(change.mean()), rel=NATS)
        assert row["ratio_stderr"] == pytest.approx(row["ratio"] * scores.standard_error(change), rel=1e-2)
        for place, (mean, error) in enumerate(
            (("kl_mean", "kl_stderr"), ("same_top", "same_top_stderr"), ("acceptance", "acceptance_stderr"))
        ):
            assert row[mean] == pytest.approx(expected[..., place].mean(), abs=NATS)
            assert row[error] == pytest.approx(scores.standard_error(expected[..., place]), abs=NATS)
        for percentile, share in (("kl_median", 50), ("kl_99", 99), ("kl_99_9", 99.9), ("kl_max", 100)):
            assert row[percentile] == pytest.approx(scores.percentile(expected[..., 0], share), abs=4 * NATS)
        masses = [sum(sorted(scores.softmax(one))[-top:]) for window in logits["base"] for one in window]
        assert row["top_mass"] == pytest.approx(np.mean(masses), abs=NATS)
    assert found[2]["kl_mean"] > 2 * found[1]["kl_mean"] > 0.01
    assert found[2]["acceptance"] < found[1]["acceptance"] < 1


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints whose models were loaded."""
    names: list[str] = []
    load = compare.load_model

    def noted(checkpoint: Any, **words: Any) -> Any:
        names.append(checkpoint.path.name)
        return load(checkpoint, **words)

    monkeypatch.setattr(compare, "load_model", noted)
    return names


def test_a_kept_base_does_not_run_again(cli: Cli, models: dict[str, Path], tmp_path: Path, loaded: list[str]) -> None:
    """And the numbers are the same to the last bit, whatever the file is used for first."""
    kept = tmp_path / "base.safetensors"
    base, near, far = models.values()
    assert rows(cli, base, *SHORT, "--keep-base", kept)[0]["kl_mean"] is None
    assert len(load_file(kept)) == 4, "the safetensors library reads it"
    words = (*SHORT, "--keep-base", kept)
    again = [rows(cli, base, near, *words), rows(cli, base, far, *words)]
    assert loaded == ["short", "near", "far"]
    together = rows(cli, base, near, far, *SHORT)
    assert loaded[3:] == ["short", "near", "far"]
    assert [again[0][0], again[0][1], again[1][1]] == together
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def replaced(name: str, value: object) -> tuple[object, ...]:
    words = list(SHORT)
    words[words.index(name) + 1] = value
    return tuple(words)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replaced("--length", 47), "length 48, not 47"),
        (replaced("--sequences", 2), "sequences 3, not 2"),
        ((*SHORT, "--top", 5), "top 1024, not 5"),
        (replaced("--activations", "quantized"), "activations float, not quantized"),
        (replaced("--text", "other.jsonl"), "tokens "),
        ("far", "checkpoint "),
    ],
    ids=["length", "sequences", "top", "activations", "text", "checkpoint"],
)
def test_a_stale_base_is_refused_by_what_differs(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changed: tuple[object, ...] | str, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    lines = TEXT.read_text().splitlines()
    Path("other.jsonl").write_text("\n".join(reversed(lines)))
    base, kept = models["base"], tmp_path / "kept"
    assert cli("eval", base, *SHORT, "--keep-base", kept, "--json").code == 0
    before = kept.read_bytes()
    if isinstance(changed, str):
        refused = cli("eval", models[changed], *SHORT, "--keep-base", kept)
    else:
        refused = cli("eval", base, *changed, "--keep-base", kept)
    assert refused.code == 2 and said in refused.err and str(kept) in refused.err, refused.err
    assert kept.read_bytes() == before


def test_the_same_tokens_under_another_name_are_the_same(
    cli: Cli, models: dict[str, Path], tmp_path: Path, loaded: list[str]
) -> None:
    copied = shutil.copy(TEXT, tmp_path / "copied.jsonl")
    kept = tmp_path / "kept"
    assert cli("eval", models["base"], *SHORT, "--keep-base", kept).code == 0
    assert cli("eval", models["base"], *replaced("--text", copied), "--keep-base", kept).code == 0
    assert loaded == ["short"]


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: data.replace(b"slideconvert_base", b"slideconvert_case"),
        lambda data: data.replace(b"log_rest", b"log_ress"),
        lambda data: data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2),
    ],
    ids=["cut", "empty", "not ours", "other tensors", "tokens"],
)
def test_a_damaged_base_is_refused(cli: Cli, models: dict[str, Path], tmp_path: Path, damage: Damage) -> None:
    kept, words = tmp_path / "kept", (*SHORT, "--keep-base", tmp_path / "kept")
    assert cli("eval", models["base"], *words).code == 0
    damaged = damage(kept.read_bytes())
    kept.write_bytes(damaged)
    refused = cli("eval", models["base"], models["near"], *words)
    assert refused.code == 2 and str(kept) in refused.err, refused
    assert kept.read_bytes() == damaged, "no file is overwritten"


def test_a_base_that_fails_leaves_no_file(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(models["base"], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    pico.save_file(tensors, broken / "model.safetensors")
    (tmp_path / "files").mkdir()
    failed = cli("eval", broken, *SHORT, "--keep-base", tmp_path / "files/kept")
    assert failed.code == 1 and "not finite" in failed.err
    assert not list((tmp_path / "files").iterdir())
    missing = cli("eval", models["base"], *SHORT, "--keep-base", tmp_path / "nowhere/kept")
    assert missing.code == 2 and "nowhere" in missing.err


def test_the_size_is_told_before_and_bounded(
    cli: Cli, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, loaded: list[str]
) -> None:
    """3 sequences of 47 positions: 8 bytes for each of 64 tokens, 12 for the loss and the rest."""
    assert kept_bytes(SEQUENCES, LENGTH, 64, WORDS) == 3 * 47 * (8 * 64 + 12)
    assert kept_bytes(SEQUENCES, LENGTH, 5000, WORDS) == 3 * 47 * (8 * WORDS + 12)
    words = ("eval", models["base"], models["near"], *SHORT)
    refused = cli(*words, "--top", WORDS, "--base-gb", 0.002)
    assert refused.code == 2 and "distributions take 0.00231 GB" in refused.err and "--top" in refused.err
    assert "positive" in cli(*words, "--base-gb", 0).err and not loaded
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    full = cli(*words)
    assert full.code == 75 and "1e-06 GB are free" in full.err and not loaded
    monkeypatch.undo()
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    told = cli("eval", models["base"], models["near"], *SHORT)
    assert "MB on disk" in told.err


def test_only_what_can_be_compared_is(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    """A model with another tokenizer, and one with the same tokens but more words."""
    other = shutil.copytree(models["base"], tmp_path / "other")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(
        json.dumps({**settings, "add_bos_token": False, "add_eos_token": False})
    )
    padded = shutil.copytree(models["base"], tmp_path / "padded")
    config = json.loads((padded / "config.json").read_text())
    tensors = load_file(padded / "model.safetensors")
    words = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([words, words[:8]])
    pico.save_file(tensors, padded / "model.safetensors")
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": WORDS + 8}))
    outcome = cli("eval", models["base"], other, padded, *SHORT)
    assert outcome.code == 0, outcome.err
    assert "other: its tokenizer makes other tokens of this text" in " ".join(outcome.out.split())
    assert f"its model has {WORDS + 8} words" in " ".join(outcome.out.split())
    for row in rows(cli, models["base"], other, padded, *SHORT)[1:]:
        assert row["ratio"] > 0 and row["kl_mean"] is None and row["ratio_stderr"] is None


def test_positions_up_to_what_the_model_reads(cli: Cli, models: dict[str, Path]) -> None:
    found = rows(cli, models["base"], models["near"], *SHORT, "--by-position")
    parts = [row["by_position"] for row in found]
    assert [(part["from"], part["to"]) for part in parts[1]] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 47)]
    for row, own in zip(found, parts, strict=True):
        mean = sum(np.log(part["perplexity"]) * part["tokens"] for part in own) / row["tokens"]
        assert np.exp(mean) == pytest.approx(row["perplexity"])
    divergence = sum(part["kl_mean"] * part["tokens"] for part in parts[1]) / found[1]["tokens"]
    assert divergence == pytest.approx(found[1]["kl_mean"])
    most = json.loads((models["base"] / "config.json").read_text())["max_position_embeddings"]
    words = ("eval", models["base"], "--text", TEXT, "--sequences", 1, "--length", most + 1)
    refused = cli(*words, "--by-position")
    assert refused.code == 2 and f"{most} positions" in refused.err and f"--length {most}" in refused.err
    assert f"reads {most} tokens" in cli(*words).out


def test_tables_fit_in_80_columns(
    cli: Cli, models: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of them, with large values too; what is left out there stands in wider ones."""
    found = rows(cli, models["base"], models["far"], *SHORT, "--by-position")
    found[1] |= {"perplexity": 12345.678, "perplexity_stderr": 1234.567, "ratio": 123.4567, "kl_99_9": 12.3456}
    protocol = TextProtocol(length=LENGTH, positions=True)
    shown = {}
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        for table in text_tables(found, protocol):
            show(table)
        shown[width] = capfd.readouterr().out
        assert "…" not in shown[width].replace("…/", "") and all(
            len(line) <= width for line in shown[width].splitlines()
        )
        for text in ("12345.678", "1234.567", "123.4567", "12.3", f"{found[1]['same_top']:.1%}"):
            assert text in shown[width], text
    assert f"{found[1]['acceptance_stderr']:.1%}" in shown[120]
    assert "max" in shown[120] and "left out" not in shown[120] and "left out in 80 columns: max" in shown[80]


def test_convert_reports_what_eval_measures(cli: Cli, tmp_path: Path) -> None:
    out, words = tmp_path / "out", ("--text", TEXT, "--sequences", "2")
    told = json.loads(cli("convert", *MAGNITUDE, DEMO, out, *words, "--json").out)
    base, made = rows(cli, DEMO, out, *words)
    report = json.loads((out / "report.json").read_text())
    for found in (told, report):
        assert {name: found["comparison"][name] for name in compare.COMPARED} == {n: made[n] for n in compare.COMPARED}
        assert (found["comparison"]["tokens"], found["comparison"]["top"]) == (2 * 511, 1024)
        sides = {"source": base["perplexity_stderr"], "output": made["perplexity_stderr"]}
        assert found["perplexity_stderr"] == sides
    for name in ("README.md", "report.html"):
        page = (out / name).read_text()
        for text in (
            f"{made['perplexity']:.3f} ± {made['perplexity_stderr']:.3f}",
            f"{made['ratio']:.4f} ± {made['ratio_stderr']:.4f}",
            f"{made['kl_mean']:.3g} ± {made['kl_stderr']:.2g}",
            f"99.9th {made['kl_99_9']:.3g}",
            f"{made['same_top']:.1%} ± {made['same_top_stderr']:.1%}",
            f"{made['acceptance']:.1%} ± {made['acceptance_stderr']:.1%}",
        ):
            assert text in page, (name, text)
    assert cli("verify", out).code == 0 and not (out / ".slideconvert-partial").exists()
    summary = cli("convert", *MAGNITUDE, DEMO, tmp_path / "b", *words).out
    assert f"{made['kl_mean']:.3g} ± {made['kl_stderr']:.2g}" in " ".join(summary.split())


def test_convert_refuses_a_text_that_is_too_much_before_it_starts(cli: Cli, tmp_path: Path) -> None:
    refused = cli("convert", *MAGNITUDE, DEMO, tmp_path / "out", "--text", TEXT, "--sequences", 10**6)
    assert refused.code == 2 and "distributions take" in refused.err and "--sequences" in refused.err
    assert not (tmp_path / "out").exists()


MEASURE = """
import sys
from pathlib import Path
from benches.peak import peak_bytes
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.compare import TextProtocol, measure

opened = {name: Checkpoint.open(Path(sys.argv[1])) for name in ("base", "other")}
length, sequences = map(int, sys.argv[3:])
measure(opened, sys.argv[2], TextProtocol(sequences=1, length=64, top=8))
start = peak_bytes()
rows = measure(opened, sys.argv[2], TextProtocol(sequences=sequences, length=length, positions=True)).rows
assert abs(rows[1]["kl_mean"]) < 1e-5 and rows[1]["same_top"] == 1
print(rows[1]["tokens"], rows[1]["by_position"][-1]["to"], peak_bytes() - start)
"""


def mostly_words(folder: Path, words: int, positions: int) -> Path:
    """A model of one layer and next to nothing but words."""
    weights = pico.weights(layers=1)
    weights["model.embed_tokens.weight"] = torch.randn(words, pico.HIDDEN).mul_(0.05).bfloat16()
    config = {"vocab_size": words, "num_hidden_layers": 1, "max_position_embeddings": positions}
    model = pico.write(folder / "model", weights, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, model)
    return model


def measured_apart(model: Path, length: int, sequences: int) -> list[int]:
    """Tokens, last position and growth of memory, in a process of its own."""
    words = [sys.executable, "-c", MEASURE, model, TEXT, length, sequences]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True, cwd=ROOT)
    return list(map(int, done.stdout.split()))


@pytest.mark.slow
def test_memory_grows_neither_with_words_nor_with_the_text(tmp_path: Path) -> None:
    """Logits of these 4,088 tokens take 804 MB, and a comparison needs them of two models. In pieces: logits, their
    exponentials, those of the top, and what is read of the file."""
    tokens, _, grown = measured_apart(mostly_words(tmp_path, 49152, 512), 512, 8)
    assert tokens == 8 * 511 and grown < 5 * 4 * head.PIECE


@pytest.mark.slow
def test_thirty_two_thousand_positions(tmp_path: Path) -> None:
    """Attention takes no square of the length (4.3 GB for each of four heads)."""
    tokens, last, grown = measured_apart(mostly_words(tmp_path, WORDS, 32768), 32768, 1)
    assert tokens == last == 32767 and grown < 10**9


def test_python_users_have_rows_and_notes(models: dict[str, Path]) -> None:
    from slideconvert import evaluate

    options = EvaluateOptions(text=str(TEXT), sequences=2, length=32, top=9)
    found = evaluate([str(models["base"]), str(models["near"])], options)
    assert found.perplexity and found.perplexity[1]["kl_mean"] > 0
    assert found.notes == () and found.protocol.top == 9
