"""The stages of `convert` as commands of their own: sparsify, quantize, slide, relayout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import checkpoint_argument, out_argument, revision_option, run_options, source_argument
from .convert import carry_out


@click.command("sparsify")
@source_argument
@out_argument
@click.option("--pattern", default="2_8", show_default=True, metavar="2_L", help="2_4 … 2_16.")
@click.option("--method", default="magnitude", show_default=True, metavar="magnitude|none")
@revision_option
@run_options
def sparsify_command(source: str, out: Path, pattern: str, method: str, revision: str | None, **run: Any) -> None:
    """Prune SOURCE to a 2:L pattern. Numbers stay as they are: BF16 stays BF16, codes stay codes with their scales.

    Best done on the BF16 model, before quantizing; on a W8A8 checkpoint it prunes the codes and says so.
    """
    from ..recipe import Recipe, make_choice

    choice = make_choice(pattern=pattern, method=method)
    carry_out(source, out, Recipe(choice, layout="dense"), revision, **run)


@click.command("quantize")
@source_argument
@out_argument
@click.option("--scheme", default="int8", show_default=True, metavar="int8|fp8", help="Numbers of the weights.")
@revision_option
@run_options
def quantize_command(source: str, out: Path, scheme: str, revision: str | None, **run: Any) -> None:
    """Quantize the float weights of SOURCE per output channel. Zeros stay zeros, and the pattern is kept."""
    from ..errors import InputError
    from ..recipe import Recipe, make_choice

    choice = make_choice(scheme=scheme)
    if choice.scheme and not choice.scheme.quantized:
        raise InputError(f"scheme {scheme} does not quantize", hint="use int8 or fp8")
    carry_out(source, out, Recipe(choice, layout="dense"), revision, **run)


@click.command("slide")
@source_argument
@out_argument
@click.option("--pattern", metavar="2_L", help="The pattern of weights pruned by others, who left no record of it.")
@revision_option
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
