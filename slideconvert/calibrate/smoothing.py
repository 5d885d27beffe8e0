"""Smooth the source before calibration: find its channel scales in a pass of some sequences through the dense model.

The plan that comes back reads a source with the scales folded in (smooth/scales.py), and nothing behind it differs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from .. import ranks
from ..checkpoint.staging import write_file, writing
from ..models.decoder import Decoder
from ..plan.plan import Plan
from ..progress import Progress
from ..smooth.scales import Scales, parse_scales, to_json
from ..smooth.search import best_exponents
from .run import RunSettings, memory_options_named
from .stream import Stream, embed, held_out

STAGE = "smooth"
"""The stage in progress, and the name of hidden states in files."""
FILE = "scales.json"
"""The file of the scales, among the finished steps of a calibration."""
SEQUENCES = 8
"""Calibration sequences that run through the dense model, none of them held out."""
LARGEST_WEIGHT = 2.0**100
"""Channels whose weights are larger stay as they are: a scale could make them infinite."""


def smoothed(plan: Plan, tokens: Tensor | None, settings: RunSettings, folder: Path, progress: Progress) -> Plan:
    """The plan with channel scales in its source, where it smooths. tokens [sequences, length] int64: of calibration,
    None without it. folder: for finished steps."""
    if tokens is None or not plan.smoothed:
        return plan
    return plan.with_scales(found_scales(plan, tokens, settings, folder, progress))


def found_scales(plan: Plan, tokens: Tensor, settings: RunSettings, folder: Path, progress: Progress) -> Scales:
    """The scales for a plan by calibration tokens [sequences, length] int64, the same on all ranks; the first finds
    them. They are kept in a file of `folder`, and read from it if it exists."""
    path = folder / FILE

    def text() -> Tensor:
        if not path.is_file():
            fitted, _ = held_out(len(tokens))
            with memory_options_named(settings.device):
                scales = _find(plan, tokens[fitted[:SEQUENCES]], settings, folder, progress)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_file(path, to_json(scales).encode())
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()[None]

    known = bytes(ranks.given(text)[0].tolist())
    return parse_scales(json.loads(known), plan.source.config, str(path))


def _find(plan: Plan, tokens: Tensor, settings: RunSettings, folder: Path, progress: Progress) -> Scales:
    options = settings.stream_options(folder / STAGE)
    decoder = Decoder(plan.source, options.device, options.dtype)
    decoder.record_passed(tokens.shape[1])
    stream = Stream(STAGE, embed(decoder, (tokens,), options, STAGE), options)
    schemes = {plan.linear.name: plan.scheme for plan in plan.linears}
    wanted, found = plan.smoothed, Scales()
    count, last = max(wanted) + 1, len(decoder.architecture.input_groups) - 1
    for number in range(count):
        progress(STAGE, number, count)
        stream.enter(decoder.layer(number))
        for maker, group in wanted.get(number, {}).items():
            inputs = torch.cat([batch.flatten(0, 1) for batch in stream.inputs(group, leaving=group == last)]).float()
            submodules = decoder.architecture.input_groups[group]
            weights = [stream.layer.linear(submodule).weight.data for submodule in submodules]
            made = stream.layer.module.state_dict()[f"{maker}.weight"]
            if max(float(one.abs().amax()) for one in (made, *weights)) > LARGEST_WEIGHT:
                continue
            own = [schemes[f"{decoder.architecture.layer(number)}.{submodule}"] for submodule in submodules]
            exponents = best_exponents(inputs, weights, own)
            if bool(exponents.any()):
                found.setdefault(number, {})[maker] = exponents.cpu()
        stream.leave()
    progress(STAGE, count, count)
    return found
