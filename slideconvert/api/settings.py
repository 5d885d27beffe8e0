"""Where and how a job computes, and which of its options have an effect there."""

from __future__ import annotations

import torch

from ..calibrate.run import RunSettings
from ..errors import InputError
from ..launched import local_rank
from ..plan.plan import Plan
from ..report.limits import Limits
from .options import (
    CalibrationOptions,
    ComputeOptions,
    DeviceOptions,
    OffloadOptions,
    Options,
    OutputOptions,
    TrainingOptions,
)


def choose_device(name: str | None, *, here: bool = True) -> str:
    """'auto' or None -> cuda if there is a GPU, else cpu. InputError for a device that is not there; with here=False,
    for what names none: a plan may be for another machine.

    Of several ranks, each takes the GPU of its number on its host; InputError if all name one GPU.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if local_rank() is None:
            return name
    if (own := local_rank()) is not None and name.startswith("cuda"):
        if name != "cuda":
            raise InputError(f"--device {name}: each rank takes a GPU of its own", hint="--device cuda, or auto")
        name = f"cuda:{own}"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (number.isascii() and number.isdecimal())):
        raise InputError(f"unknown device '{name}'", hint="auto, cpu, cuda or cuda:N")
    if here and kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices", hint="--device cpu"
        )
    return name


def settings_of(options: DeviceOptions, *, here: bool = True) -> RunSettings:
    """How a run computes. InputError for unknown values, and unless here=False for a device that is not there."""
    device = choose_device(options.device, here=here)
    if not isinstance(options, ComputeOptions):
        return RunSettings(device)
    offload = isinstance(options, OffloadOptions) and options.offload
    keep_on = options.keep_on or ("cpu" if offload else "device")
    return RunSettings(device, keep_on, options.batch_tokens, offload, options.precision or "auto")


def limits_of(options: OutputOptions, plan: Plan) -> Limits:
    """What the options allow of the result. InputError for a limit of something that is not measured."""
    if options.max_kl is not None and not (plan.calibrated or options.text):
        raise InputError(
            "--max-kl has no effect: nothing is measured here", hint="name a text to measure on: --text FILE"
        )
    if options.max_output_error is not None and not plan.calibrated:
        raise InputError(
            "--max-output-error has no effect: output errors are measured on calibration text, and nothing is "
            "calibrated here",
            hint="choose a calibrated --method or a --preset, or give --text FILE and --max-kl",
        )
    return Limits(options.max_kl, options.max_output_error)


def refuse_unused(options: Options, plan: Plan, *, measures: bool = False) -> None:
    """InputError for calibration and compute options that have no effect on a plan.

    measures: whether patterns are chosen for a target, which runs calibration text through the model in any case.
    """
    if not (plan.calibrated or measures):
        offered = [*CalibrationOptions.options(), *ComputeOptions.options(), *OffloadOptions.options()]
        for_text = {one.name for one in offered} - {one.name for one in DeviceOptions.options()}
        unused = [one for one in options.given() if one.name in for_text]
        if unused:
            raise InputError(
                f"{unused[0].flag} has no effect: nothing is calibrated or trained here",
                hint="omit it, or choose a calibrated --method or a --preset",
            )
    recovery = plan.recovery
    kept_on = options.keep_on if isinstance(options, ComputeOptions) else None
    offload = isinstance(options, OffloadOptions) and options.offload
    if offload and kept_on and not (recovery and recovery.end_epochs):
        raise InputError(
            f"--offload has no effect: hidden states are kept on {kept_on}, and nothing is trained end to end",
            hint="omit it, omit --keep-on, or choose --preset quality or --end-epochs",
        )
    if isinstance(options, TrainingOptions) and options.generated and not recovery:
        raise InputError(
            "--generated has no effect: nothing is trained here",
            hint="omit it, or choose --preset balanced or quality",
        )
