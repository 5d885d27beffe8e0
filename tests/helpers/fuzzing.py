"""The cases of the fuzz tier: which file of which model is damaged before which command. A case is a seed.

    python -m tests.helpers.fuzzing 0 10000    # failures, seconds and peak memory of these seeds

Each case of this command runs in a fork, so that its memory and time are its own; one that goes on for 20 seconds of
CPU time is killed and counted as a failure.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
import pyarrow
import pyarrow.parquet
import torch

from benches.peak import peak_bytes
from slideconvert.checkpoint.files import CHANNEL_SCALES
from slideconvert.cli import DEFECT, main
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_text, write_tokenizer
from tests.helpers.forks import fork
from tests.helpers.mutations import damage
from tests.helpers.outliers import enlarged

RECIPE = "scheme: int8\npattern: 2:8\nmethod: magnitude\nrules:\n  - {match: '*.down_proj', pattern: '2:6'}\n"
COMMANDS = {
    "plan": "plan MODEL --method magnitude",
    "convert": "convert MODEL OUT --method magnitude",
    "recipe": "plan MODEL --recipe RECIPE",
    "calibrated": f"convert MODEL OUT --preset fast --calibration TEXT {' '.join(map(str, FLAGS))}",
    "sparsify": "sparsify MODEL OUT --method magnitude",
    "relayout": "relayout MODEL OUT --layout dense",
    "verify": "verify MODEL",
    "verify against": "verify MODEL --source SOURCE",
    "inspect": "inspect MODEL",
    "doctor": "doctor MODEL",
    "eval": "eval MODEL --text TEXT --length 24 --sequences 3",
    "generate": "generate MODEL --prompt w1 --max-new-tokens 3",
}
MADE = {
    "slide": ("--method", "magnitude"),
    "smoothed": ("--preset", "balanced", "--block-epochs", "0"),
    "permuted": ("--preset", "quality", "--block-epochs", "0", "--end-epochs", "0"),
    "gqs": ("--method", "saliency", "--sparsity", "0.5", "--group-size", "8", "--preset", "fast"),
}
"""Checkpoints of ours, and the words of the conversions that write them."""
MOST_BYTES, MOST_SECONDS = 10**9, 20


@dataclass(frozen=True)
class Case:
    """A command on a folder in which one file is damaged."""

    seed: int
    command: str
    model: str
    victim: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.command} of {self.model} with a damaged {self.victim.name}"

    def fault(self, code: int, out: str, err: str) -> str:
        """What is wrong with the end of the command; empty if nothing is."""
        if code not in (0, 1, 2):
            return f"a defect: {err[-2000:]}" if code == DEFECT else f"exit code {code}: {err[-2000:]}"
        if code == 2 and not (err.strip().splitlines() or [""])[-1].startswith(("error: ", "Error: ")):
            return f"no error in the last line: {err[-2000:]}"
        return "a terminal escape" if "\x1b" in out + err else ""


def run(*words: object) -> int:
    """The exit code of a slideconvert command in this process."""
    before, sys.argv = sys.argv, ["slideconvert", *map(str, words)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def write_whole(root: Path) -> Path:
    """A folder with sound models (a source in shards with large channels, others' W8A8, ours), texts and a recipe."""
    source = write_tokenizer(pico.write(root / "source", enlarged(pico.weights(), pico.LAYERS), shards=2))
    write_tokenizer(pico.w8a8(root / "w8a8"))
    text = write_text(root / "text.jsonl")
    for name, words in MADE.items():
        calibration = () if name == "slide" else ("--calibration", text, *FLAGS)
        assert run("convert", "-q", source, root / name, *words, *calibration) == 0
    assert (root / "smoothed" / CHANNEL_SCALES).is_file()
    (root / "text.txt").write_text("w1 w2 w3 " * 200)
    rows = [f"w{number} " * 60 for number in range(30)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), root / "text.parquet")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def prepare(seed: int, whole: Path, folder: Path) -> Case:
    """Copy what the case needs from `whole` into `folder`, and damage one file of it."""
    random = Random(seed)
    model = random.choice(("source", "source", "w8a8", *MADE))
    shutil.copytree(whole / model, folder / "model", copy_function=os.link)
    texts = {name: folder / f"text.{name}" for name in ("jsonl", "txt", "parquet")}
    for path in texts.values():
        shutil.copyfile(whole / path.name, path)
    shutil.copyfile(whole / "recipe.yaml", folder / "recipe.yaml")
    text = random.choice(list(texts.values()))
    name = random.choice(list(COMMANDS))
    words = {"MODEL": folder / "model", "OUT": folder / "out", "TEXT": text, "RECIPE": folder / "recipe.yaml"}
    words["SOURCE"] = whole / "source"
    command = COMMANDS[name].split()
    files = [path for path in sorted((folder / "model").iterdir()) if path.suffix in (".json", ".safetensors")]
    used = [words[word] for word in ("TEXT", "RECIPE") if word in command]
    victim = random.choice(used) if used and random.random() < 0.5 else random.choice(files)
    damage(victim, random)
    return Case(seed, name, model, victim, tuple(str(words.get(word, word)) for word in command))


@dataclass(frozen=True)
class End:
    """What a case left: its fault (or none), CPU seconds, and peak memory in bytes."""

    fault: str
    seconds: float
    peak: int


def run_apart(case: Case, folder: Path) -> End:
    """Run a case in a fork of this process."""
    out, err, peak = folder / "stdout", folder / "stderr", folder / "peak"
    started = os.times()
    child = fork()
    if not child:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            code = run(*case.words)
            sys.stdout.flush()
            sys.stderr.flush()
            peak.write_text(str(peak_bytes()))
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = os.times()
    seconds = ended.children_user + ended.children_system - started.children_user - started.children_system
    bytes_used = int(peak.read_text()) if peak.exists() else 0
    fault = case.fault(status, out.read_text(errors="replace"), err.read_text(errors="replace"))
    if status == -signal.SIGXCPU:
        fault = f"over {MOST_SECONDS} s of CPU time"
    elif not fault and bytes_used > MOST_BYTES:
        fault = f"{bytes_used / 1e6:.0f} MB"
    return End(fault, seconds, bytes_used)


def summary(ends: dict[int, End]) -> str:
    """How many cases failed, and the seconds and memory of all."""
    seconds, peaks = sorted(end.seconds for end in ends.values()), [end.peak for end in ends.values()]
    faults = sum(bool(end.fault) for end in ends.values())
    return (
        f"{len(ends)} cases, {faults} failed; CPU seconds: median {statistics.median(seconds):.2f}, most "
        f"{seconds[-1]:.1f}; peak memory: at most {max(peaks) / 1e6:.0f} MB"
    )


def fuzz(first: int, last: int) -> None:
    """Run the cases first … last - 1 and print what failed."""
    torch.set_num_threads(1)
    ends = {}
    with tempfile.TemporaryDirectory() as name:
        whole = write_whole(Path(name) / "whole")
        run("eval", whole / "source", "--text", whole / "text.jsonl", "--length", "24")  # what is imported is shared
        run("generate", whole / "source", "--prompt", "w1", "--max-new-tokens", "3")
        for seed in range(first, last):
            folder = Path(name) / "case"
            folder.mkdir()
            case = prepare(seed, whole, folder)
            sys.stdout.flush()
            ends[seed] = run_apart(case, folder)
            if ends[seed].fault:
                click.echo(f"{case}: {ends[seed].fault}")
            shutil.rmtree(folder)
    click.echo(summary(ends))


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]))
