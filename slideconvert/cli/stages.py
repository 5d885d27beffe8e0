"""The stages of `convert` as commands of their own: sparsify, quantize, slide, relayout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import (
    CALIBRATION,
    calibration_options,
    calibration_words,
    checkpoint_argument,
    out_argument,
    run_options,
    source_argument,
)
from .convert import EPOCHS, carry_out, epochs_options, full_recipe, group_options, preset_option, sparsity_options
from .sources import source_options
from .targets import take


@click.command("sparsify")
@source_argument
@out_argument
@click.option("--pattern", metavar="2_L", help="2_4 … 2_16.  [default: 2_8]")
@sparsity_options
@click.option("--group-size", type=int, help="Weights of a group that goes as a whole (gqsa).  [default: 16]")
@preset_option
@epochs_options
@click.option(
    "--method",
    metavar="magnitude|wanda|hessian|obs|alps|gqsa|saliency",
    help="One method, instead of the preset's.",
)
@calibration_options
@source_options
@run_options
def sparsify_command(source: str, out: Path, revision: str | None, **said: Any) -> None:
    """Prune SOURCE to a 2:L pattern, or take whole groups of its weights (--sparsity). BF16 stays BF16, and codes stay
    codes of the same scheme.

    Best done together with quantizing (convert), or on the BF16 model before it; method magnitude prunes the codes of
    a W8A8 checkpoint and says so.
    """
    from ..errors import pick
    from ..prune import METHODS

    words = take(said, ("pattern", "sparsity", "row_cap", "group_size", "preset", *EPOCHS, "method", *CALIBRATION))
    words["calibration"] = said.pop("calibration")
    if words["method"]:
        pick(words["method"], [name for name, known in METHODS.items() if known.prunes], "method of pruning")
    recipe = full_recipe(None, layout="dense", defaults=({"pattern": "2:8"}, {"sparsity": 0.5}), **words)
    carry_out(source, out, recipe, revision, **said)


@click.command("quantize")
@source_argument
@out_argument
@click.option("--scheme", metavar="int8|fp8|w4a16|w4a8|w8a16", help="Numbers of the weights.  [default: int8]")
@group_options
@click.option("--method", default="rtn", show_default=True, metavar="rtn|gptq", help="To nearest, or by calibration.")
@calibration_options
@source_options
@run_options
def quantize_command(source: str, out: Path, method: str, revision: str | None, **said: Any) -> None:
    """Quantize the float weights of SOURCE per output channel, or in 4 bits per group. Zeros stay, and the pattern."""
    from ..errors import InputError, pick
    from ..plan.linear_config import parse_linear_config
    from ..plan.presets import parse_calibration
    from ..plan.recipe import Recipe

    by_data = pick(method, ("rtn", "gptq"), "method of quantizing") == "gptq"
    words = take(said, ("scheme", "bits", "group_size", "symmetric"))
    if words["bits"] is None and words["scheme"] is None:
        words["scheme"] = "int8"
    config = parse_linear_config(**words, method=method if by_data else None)
    calibration = parse_calibration(calibration_words(said), "flags")
    if config.scheme and not config.scheme.quantized:
        raise InputError(f"scheme {config.scheme.name} does not quantize", hint="use int8, fp8 or w4a16")
    carry_out(source, out, Recipe(config, layout="dense", calibration=calibration), revision, **said)


@click.command("slide")
@source_argument
@out_argument
@click.option("--pattern", metavar="2_L", help="The pattern of weights pruned by others, who left no record of it.")
@source_options
@run_options
def slide_command(source: str, out: Path, pattern: str | None, revision: str | None, **run: Any) -> None:
    """Re-lay the quantized weights of SOURCE into 2:4 windows (the slide layout)."""
    from ..plan.linear_config import parse_linear_config
    from ..plan.recipe import Recipe

    carry_out(source, out, Recipe(parse_linear_config(pattern=pattern), layout="slide"), revision, **run)


@click.command("relayout")
@checkpoint_argument
@out_argument
@click.option("--layout", required=True, metavar="dense|slide|gqs", help="The layout to write.")
@run_options
def relayout_command(ckpt: Path, out: Path, layout: str, **run: Any) -> None:
    """Write the same weights in the other layout, exactly. The dense one loads in stock vLLM and transformers."""
    from ..formats.stored import parse_layout
    from ..plan.recipe import Recipe

    carry_out(str(ckpt), out, Recipe(layout=parse_layout(layout)), None, **run)
