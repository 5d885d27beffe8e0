"""The stages of `convert` as commands of their own: sparsify, quantize, slide, relayout."""

from __future__ import annotations

from pathlib import Path

import click

from ..api.options import QuantizeOptions, RelayoutOptions, SlideOptions, SparsifyOptions
from ..runtime.slidesparse_record import LAYOUTS
from .common import Word, checkpoint_argument, out_argument, source_argument
from .convert import run
from .options import Display, HeadedOption, command


@command("sparsify", SparsifyOptions)
@source_argument
@out_argument
def sparsify_command(source: str, out: Path, options: SparsifyOptions, display: Display) -> None:
    """Prune SOURCE to a 2:L pattern, or prune whole groups of its weights (--sparsity). BF16 stays BF16, and codes stay
    codes of the same scheme.

    \b
      slideconvert sparsify MODEL OUT --pattern 2_8 --calibration my.jsonl

    Prune together with quantizing (convert), or prune the BF16 model first; method magnitude prunes the codes of a W8A8
    checkpoint and reports it.
    """
    from ..api.recipe import sparsify_recipe

    run(source, out, sparsify_recipe(options), options, display)


@command("quantize", QuantizeOptions)
@source_argument
@out_argument
def quantize_command(source: str, out: Path, options: QuantizeOptions, display: Display) -> None:
    """Quantize the float weights of SOURCE per output channel, or per group. Zeros stay zeros, so the pattern stays.

    \b
      slideconvert quantize MODEL OUT --scheme int8
    """
    from ..api.recipe import quantize_recipe

    run(source, out, quantize_recipe(options), options, display)


@command("slide", SlideOptions)
@source_argument
@out_argument
def slide_command(source: str, out: Path, options: SlideOptions, display: Display) -> None:
    """Pack the quantized weights of SOURCE into 2:4 windows (the slide layout).

    \b
      slideconvert slide QUANTIZED OUT --pattern 2_8
    """
    from ..api.recipe import slide_recipe

    run(source, out, slide_recipe(options), options, display)


@command("relayout", RelayoutOptions)
@checkpoint_argument
@out_argument
@click.option(
    "--layout",
    cls=HeadedOption,
    heading="Output",
    required=True,
    type=Word(LAYOUTS, "layout"),
    metavar="|".join(LAYOUTS),
    help="Layout to write.",
)
def relayout_command(ckpt: Path, out: Path, layout: str, options: RelayoutOptions, display: Display) -> None:
    """Write the weights of CKPT in another layout, exactly. The dense one loads in stock vLLM and transformers.

    \b
      slideconvert relayout out/ out-dense/ --layout dense
    """
    from ..formats.registry import parse_layout
    from ..plan.recipe import Recipe

    run(str(ckpt), out, Recipe(layout=parse_layout(layout)), options, display)
