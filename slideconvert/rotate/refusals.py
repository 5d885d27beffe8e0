"""The sources that cannot be rotated, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..core.choices import ALL
from ..core.patterns import BlockPattern
from ..errors import InputError
from ..formats.foreign import KEY
from ..formats.record import describe_linear
from ..models.architecture import Architecture
from ..models.completeness import model_faults, shapes_of
from ..models.families import FAMILIES, architecture_of, decoder_linears
from ..models.load import empty_model
from ..runtime.slidesparse_record import RECORD

FLOATS = ("BF16", "F16", "F32")


def check_rotatable(source: Checkpoint, pattern: BlockPattern, parts: str) -> None:
    """InputError for a pattern that prunes nothing or does not fit, a family with norms between the rotated channels,
    and weights that are no floats."""
    architecture = architecture_of(source.config)
    if not pattern.prunes:
        raise InputError(f"pattern {pattern} prunes nothing", hint="name the pattern of the conversion, such as 2_4")
    _check_family(architecture, source.config, parts)
    if source.config.get(KEY) is not None or source.config.get(RECORD) is not None:
        raise InputError(
            f"{source.path}: the weights are quantized or pruned already, and a rotation would undo that",
            hint="rotate the BF16 model, then convert the result",
        )
    linears = [describe_linear(source, None, linear.name) for linear in decoder_linears(source.config)]
    for linear in linears:
        pattern.check_shape(linear.shape, linear.name)
    if faults := model_faults(source, shapes_of(empty_model(source)), linears):
        raise faults[0]
    for name, placed in source.tensors.items():
        if architecture.layer_of(name) is not None and placed.spec.dtype not in FLOATS:
            raise InputError(
                f"{source.path}: {name} is {placed.spec.dtype}, a rotation needs {', '.join(FLOATS)}",
                hint="rotate the BF16 model",
            )


def _check_family(architecture: Architecture, config: Mapping[str, Any], parts: str) -> None:
    family = config["model_type"]
    if architecture.heads is None or architecture.heads.norm:
        norm = architecture.heads.norm if architecture.heads else "a norm"
        raise InputError(
            f"{family}: {norm} stands between the values of heads and the linear that reads them, so these cannot be "
            "rotated",
            hint="convert the model as it is",
        )
    if parts == ALL and architecture.residual_norms is None:
        known = ", ".join(sorted(name for name, one in FAMILIES.items() if one.residual_norms))
        raise InputError(
            f"{family}: its norms cannot be folded into the linears behind them, so its residual stream cannot be "
            "rotated",
            hint=f"--parts heads rotates the values of heads alone; all is for {known}",
        )
