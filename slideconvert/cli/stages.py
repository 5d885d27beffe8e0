"""The stages of `convert` as commands of their own: sparsify, quantize, slide, relayout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import (
    calibration_options,
    calibration_words,
    checkpoint_argument,
    out_argument,
    run_options,
    source_argument,
)
from .convert import PRESET, carry_out
from .sources import source_options


@click.command("sparsify")
@source_argument
@out_argument
@click.option("--pattern", default="2_8", show_default=True, metavar="2_L", help="2_4 … 2_16.")
@click.option("--preset", metavar="fast|balanced|quality", help="Time spent for accuracy.  [default: balanced]")
@click.option("--method", metavar="magnitude|wanda|hessian|obs|alps", help="One method, instead of the preset's.")
@calibration_options
@source_options
@run_options
def sparsify_command(
    source: str, out: Path, pattern: str, preset: str | None, method: str | None, revision: str | None, **said: Any
) -> None:
    """Prune SOURCE to a 2:L pattern. BF16 stays BF16, and codes stay codes of the same scheme.

    Best done together with quantizing (convert), or on the BF16 model before it; method magnitude prunes the codes of
    a W8A8 checkpoint and says so.
    """
    from ..calibrate.settings import parse_calibration, parse_preset
    from ..errors import pick
    from ..prune import METHODS
    from ..recipe import Recipe, make_choice

    if method:
        pick(method, [name for name, known in METHODS.items() if known.prunes], "method of pruning")
    calibration = parse_calibration(calibration_words(said), "flags")
    chosen = parse_preset(preset or PRESET) if preset or not method else None
    recipe = Recipe(make_choice(pattern=pattern, method=method), layout="dense", preset=chosen, calibration=calibration)
    carry_out(source, out, recipe, revision, **said)


@click.command("quantize")
@source_argument
@out_argument
@click.option("--scheme", default="int8", show_default=True, metavar="int8|fp8", help="Numbers of the weights.")
@click.option("--method", default="rtn", show_default=True, metavar="rtn|gptq", help="To nearest, or by calibration.")
@calibration_options
@source_options
@run_options
def quantize_command(source: str, out: Path, scheme: str, method: str, revision: str | None, **said: Any) -> None:
    """Quantize the float weights of SOURCE per output channel. Zeros stay zeros, and the pattern is kept."""
    from ..calibrate.settings import parse_calibration
    from ..errors import InputError, pick
    from ..recipe import Recipe, make_choice

    by_data = pick(method, ("rtn", "gptq"), "method of quantizing") == "gptq"
    choice = make_choice(scheme=scheme, method=method if by_data else None)
    calibration = parse_calibration(calibration_words(said), "flags")
    if choice.scheme and not choice.scheme.quantized:
        raise InputError(f"scheme {scheme} does not quantize", hint="use int8 or fp8")
    carry_out(source, out, Recipe(choice, layout="dense", calibration=calibration), revision, **said)


@click.command("slide")
@source_argument
@out_argument
@click.option("--pattern", metavar="2_L", help="The pattern of weights pruned by others, who left no record of it.")
@source_options
@run_options
def slide_command(source: str, out: Path, pattern: str | None, revision: str | None, **run: Any) -> None:
    """Re-lay the quantized weights of SOURCE into 2:4 windows (the slide layout)."""
    from ..recipe import Recipe, make_choice

    carry_out(source, out, Recipe(make_choice(pattern=pattern), layout="slide"), revision, **run)


@click.command("relayout")
@checkpoint_argument
@out_argument
@click.option("--layout", required=True, metavar="dense|slide", help="The layout to write.")
@run_options
def relayout_command(ckpt: Path, out: Path, layout: str, **run: Any) -> None:
    """Write the same weights in the other layout, exactly. The dense one loads in stock vLLM and transformers."""
    from ..layout import parse_layout
    from ..recipe import Recipe

    carry_out(str(ckpt), out, Recipe(layout=parse_layout(layout)), None, **run)
