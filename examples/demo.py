"""Run the main commands on the demo model: convert, relayout, verify, perplexity before and after, generate.

    python examples/demo.py [FOLDER]

Each stage says when it begins and what it took. All run in one Python, because importing torch takes seconds.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from time import monotonic

import click

BEGUN = monotonic()
HERE = Path(__file__).resolve().parent
MODEL, CALIBRATION, TEXT = (
    HERE / name for name in ("demo_model", "demo_text/calibration.jsonl", "demo_text/evaluation.jsonl")
)


def stages(out: Path) -> dict[str, list[str | Path]]:
    """What each stage is, and the words of its command."""
    slide, dense = out / "int8-2of8", out / "int8-2of8-dense"
    text = ["--calibration", CALIBRATION, "--samples", "32", "--length", "512"]
    return {
        "convert: prune, quantize, pack and verify": [
            "convert", MODEL, slide, "--scheme", "int8", "--pattern", "2_8", *text
        ],
        "relayout: the same weights for stock loaders": ["relayout", slide, dense, "--layout", "dense"],
        "verify: every weight, against the source": ["verify", slide, "--source", MODEL],
        "eval: perplexity and divergence from the source": [
            "eval", MODEL, slide, dense, "--text", TEXT, "--sequences", "8"
        ],
        "generate: continue a prompt": ["generate", slide, "--prompt", "def "],
    }  # fmt: skip


def run(words: list[str | Path]) -> None:
    """A command of slideconvert, which ends the demo if it fails."""
    from slideconvert.cli import main

    sys.argv = ["slideconvert", *map(str, words)]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def demo(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found = stages(out)
    for number, (title, words) in enumerate(found.items(), 1):
        stage, begun = f"[{number}/{len(found)}]", monotonic()
        click.secho(f"\n{stage} {title}", bold=True)
        click.echo(f"$ {shlex.join(['slideconvert', *map(str, words)])}")
        run(words)
        click.echo(f"{stage} done in {monotonic() - begun:.0f} s, {monotonic() - BEGUN:.0f} s in all")
    click.echo(f"\nThe outputs are in {out}:")
    for name, what in (
        ("int8-2of8", "slide layout: 2:4 windows for sparse tensor cores"),
        ("int8-2of8-dense", "the same weights for stock vLLM and transformers"),
        ("int8-2of8/report.html", "error and size of every layer"),
        ("int8-2of8/README.md", "the model card"),
    ):
        click.echo(f"  {name:28} {what}")


if __name__ == "__main__":
    demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"))
