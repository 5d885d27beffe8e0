"""Time and memory of a conversion without calibration, beside mere reading and writing of the files, and a profile.

    python benches/synthetic.py /tmp/llama-1b --model Llama-3.2-1B
    python benches/bench_convert.py /tmp/llama-1b /tmp/out

Each run is a process of its own, so that peak memory is that of the command a user types. The baseline reads every
tensor of the source and writes every tensor of the output with the safetensors library: nothing that produces the
output can do less. Runs alternate; the median of each is reported.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

PEAK = str(Path(__file__).with_name("peak.py"))
BASELINE = """
import sys, time
from safetensors.torch import load_file, save_file
started = time.perf_counter()
for path in sys.argv[1].split(":"):
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # into memory: the file is only mapped so far
print(time.perf_counter() - started)
del tensors
output = {name: tensor.clone() for path in sys.argv[2].split(":") for name, tensor in load_file(path).items()}
started = time.perf_counter()
save_file(output, sys.argv[3])
print(time.perf_counter() - started)
"""

PROFILED = """
import json, sys, threading, time
from collections import Counter
from slideconvert.convert import linear, pipeline
from slideconvert.formats.slide import Slide
from slideconvert.checkpoint import reader, writer

spent, lock = Counter(), threading.Lock()

def timed(owner, name, label):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        started = time.thread_time(), time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            with lock:
                spent[label + " (cpu)"] += time.thread_time() - started[0]
                spent[label + " (wall)"] += time.perf_counter() - started[1]
    setattr(owner, name, wrapped)

timed(pipeline, "convert_linear", "a linear, all of it")
timed(reader.Checkpoint, "read_flat", "read")
timed(writer.WeightWriter, "_put", "hash and write")
timed(linear, "compress_directly", "prune and quantize")
timed(Slide, "encode", "slide and pack")
timed(linear, "sum_changes", "errors and zeros for the report")
timed(linear, "check_finite", "check for NaN")
sys.argv = ["slideconvert", *sys.argv[1:]]
from slideconvert.cli import main
try:
    main()
finally:
    sys.stderr.write(json.dumps(spent) + "\\n")
"""


def run(*command: str) -> tuple[str, str]:
    """stdout and stderr of Python with these words. ClickException if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return done.stdout, done.stderr


def measured(words: list[str]) -> tuple[float, str]:
    """Peak memory in MB and stdout of a command of slideconvert."""
    with tempfile.NamedTemporaryFile("r") as peak:
        stdout, _ = run(PEAK, peak.name, *words)
        return int(peak.read()) / 1e6, stdout


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--repeats", default=3, show_default=True)
@click.option("--scheme", default="int8", show_default=True)
@click.option("--pattern", default="2_8", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(source: Path, out: Path, repeats: int, scheme: str, pattern: str, device: str) -> None:
    """Convert SOURCE into OUT repeatedly and print the figures as Markdown and JSON."""
    words = ["convert", str(source), str(out), "--method", "magnitude", "--scheme", scheme, "--pattern", pattern]
    words += ["--device", device, "--json"]
    runs: dict[str, list[dict[str, Any]]] = {"convert only": [], "convert and verify": [], "read and write": []}
    for _ in range(repeats):
        for name, extra in (("convert only", ["--no-verify"]), ("convert and verify", [])):
            shutil.rmtree(out, ignore_errors=True)
            peak, stdout = measured([*words, *extra])
            result = json.loads(stdout)
            runs[name].append({"seconds": result["seconds"], "peak": peak, "totals": result["totals"]})
        files = ":".join(str(path) for path in sorted(source.glob("*.safetensors")))
        written = ":".join(str(path) for path in sorted(out.glob("*.safetensors")))
        scratch = out.with_name(out.name + ".baseline")
        stdout, _ = run("-c", BASELINE, files, written, str(scratch))
        scratch.unlink()
        reading, writing = map(float, stdout.split())
        runs["read and write"].append({"seconds": reading + writing, "read": reading, "peak": 0.0})
    shutil.rmtree(out, ignore_errors=True)
    _, stderr = run("-c", PROFILED, *words, "--no-verify")
    profile = json.loads(stderr.strip().splitlines()[-1])

    baseline = statistics.median(row["seconds"] for row in runs["read and write"])
    weights = runs["convert only"][0]["totals"]["weights"]
    click.echo(f"{source.name}, {scheme} {pattern}, device {device}, {platform.machine()}, {repeats} runs\n")
    click.echo("| | seconds | million weights/s | × read and write | peak memory |\n|---|---|---|---|---|")
    for name, rows in runs.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        rate = "" if name == "read and write" else f"{weights / seconds / 1e6:.0f}"
        most = "" if name == "read and write" else f"{max(row['peak'] for row in rows):.0f} MB"
        spread = f"{min(row['seconds'] for row in rows):.1f}–{max(row['seconds'] for row in rows):.1f}"
        click.echo(f"| {name} | {seconds:.1f} ({spread}) | {rate} | {seconds / baseline:.2f} | {most} |")
    click.echo("\n| step | CPU seconds, all threads | ns per weight |\n|---|---|---|")
    for label, seconds in sorted(profile.items(), key=lambda item: -item[1]):
        if label.endswith(" (cpu)"):
            click.echo(f"| {label.removesuffix(' (cpu)')} | {seconds:.2f} | {seconds / weights * 1e9:.2f} |")
    click.echo(json.dumps({"runs": runs, "profile": profile}))


if __name__ == "__main__":
    main()
