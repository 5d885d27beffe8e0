"""How far a written output is from its source on the calibration sequences that were held out of the fit.

Source and output run side by side, layer by layer, as in calibration: a layer of each is in memory. What is measured is
what was written, after all training. Activations are float32 and not quantized: the numbers are the weights' alone.

Solvers and training never fit to these sequences. They choose the number of refit steps and the best epoch by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import ranks
from ..calibrate.run import RunSettings
from ..calibrate.stream import Stream, embed
from ..checkpoint.reader import Checkpoint
from ..core.precision import running
from ..core.weights import unit_of
from ..errors import SlideConvertError
from ..evaluate.statistics import mean_and_error
from ..models.decoder import Decoder
from ..permute.permutations import Permutations, permute_weight
from ..progress import Progress, silent
from ..prune.statistics import Accumulator
from ..report import HeldOut

STAGE = "compare"


def measure_held_out(
    source: Checkpoint,
    output: Checkpoint,
    permutations: Mapping[int, Permutations],
    tokens: Tensor,
    settings: RunSettings,
    folder: Path,
    progress: Progress = silent,
) -> tuple[HeldOut, dict[str, float]]:
    """Source and output on tokens [sequences, length] int64, and the output error of every linear by its name.

    permutations: of the output's channels by layer, relative to the source. folder: for hidden states on disk. The
    output error of a linear is ||X (W' - W)ᵀ|| / ||X Wᵀ|| (Frobenius norms): W its weight in the source, W' in the
    output, X [tokens, K] its inputs in the output. SlideConvertError if the output's predictions are not finite.
    """
    options, length = replace(settings.stream_options(folder), dtype=torch.float32), tokens.shape[1]
    dense, made = (Decoder(one, options.device, options.dtype) for one in (source, output))
    for decoder in (dense, made):
        decoder.record_passed(length)
    hidden = embed(dense, (tokens,), options, "compare-source")
    before = Stream("compare-source", hidden, options)
    after = Stream("compare-output", hidden.copy("compare-output"), options)
    count = int(source.config["num_hidden_layers"])
    errors: dict[str, float] = {}
    by_layer = []
    for number in range(count):
        progress(STAGE, number, count + 1)
        before.enter(dense.layer(number))
        after.enter(made.layer(number))
        found = _output_errors(before, after, permutations.get(number, {}), dense)
        errors |= {f"{dense.architecture.layer(number)}.{submodule}": error for submodule, error in found.items()}
        before.leave()
        by_layer.append(_relative(before, after))
    progress(STAGE, count, count + 1)
    kl, losses = _predictions(dense, made, before, after, tokens)
    if not bool(kl.isfinite().all() and losses.isfinite().all()):
        raise SlideConvertError(
            "the output's predictions of held-out calibration text are not finite",
            hint="check the source on this text with slideconvert eval",
        )
    progress(STAGE, count + 1, count + 1)
    mean, stderr = mean_and_error(kl)
    return HeldOut(
        sequences=len(tokens),
        length=length,
        kl=_short(mean),
        kl_stderr=None if stderr is None else _short(stderr),
        source_perplexity=_short(math.exp(float(losses[0].mean()))),
        output_perplexity=_short(math.exp(float(losses[1].mean()))),
        layer_errors=tuple(by_layer),
    ), errors


def _output_errors(before: Stream, after: Stream, moved: Permutations, dense: Decoder) -> dict[str, float]:
    """The output error of each linear of the current layer by submodule; the output's stream advances through it."""
    errors: dict[str, float] = {}
    groups = dense.architecture.input_groups
    for group, submodules in enumerate(groups):
        found: Accumulator | None = None
        for batch in after.inputs(group, leaving=group == len(groups) - 1):
            if found is None:
                found = Accumulator(batch.shape[-1], batch.device, unit=unit_of(batch))
            found.add(batch.flatten(0, 1), None)
        assert found is not None
        gram = found.statistics().gram
        for submodule in submodules:
            weight = permute_weight(submodule, before.layer.linear(submodule).weight.data, moved, dense.free)
            assert isinstance(weight, Tensor)
            errors[submodule] = _output_error(weight, after.layer.linear(submodule).weight.data, gram)
    return errors


def _output_error(before: Tensor, after: Tensor, gram: Tensor) -> float:
    """Relative error of a linear's output: root of tr(D H Dᵀ) / tr(W H Wᵀ), D = after - before, six digits."""
    unit = unit_of(before)
    if unit != 1:
        before, after = before * unit, after * unit
    own = ranks.own_rows()
    before, after = before[own], after[own]
    change = after - before
    loss, whole = ranks.sums(
        float((change @ gram * change).sum(dtype=torch.float64)),
        float((before @ gram * before).sum(dtype=torch.float64)),
    )
    return float(f"{(max(loss, 0.0) / whole) ** 0.5:.6g}") if whole > 0 else 0.0


def _relative(before: Stream, after: Stream) -> float:
    """||H' - H|| / ||H|| of the hidden states behind the current layer, in the output and in the source."""
    change = whole = 0.0
    for theirs, ours in zip(before.hidden, after.hidden, strict=True):
        change += float((ours - theirs).square().sum(dtype=torch.float64))
        whole += float(theirs.square().sum(dtype=torch.float64))
    return _short((change / whole) ** 0.5) if whole else 0.0


def _predictions(dense: Decoder, made: Decoder, before: Stream, after: Stream, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergences of source to output [sequences, length - 1], and the losses of both [2, sequences, length - 1], in
    nats, float64 on the CPU."""
    heads, norms = [one.head() for one in (dense, made)], [one.final_norm() for one in (dense, made)]

    def scores(theirs: Tensor, ours: Tensor, wanted: Tensor) -> Tensor:
        p, q = (head.logits(states).log_softmax(-1) for head, states in zip(heads, (theirs, ours), strict=True))
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        losses = [-one.gather(-1, wanted[:, None])[:, 0] for one in (p, q)]
        return torch.stack([kl, *losses], -1)

    found, done = [], 0
    for states in zip(before.hidden, after.hidden, strict=True):
        batch = tokens[done : done + len(states[0])]
        done += len(batch)
        with torch.no_grad(), running(states[0].device, dense.dtype):
            last = [norm(one)[:, :-1].flatten(0, 1).to(dense.dtype) for norm, one in zip(norms, states, strict=True)]
            numbers = heads[0].losses(scores, *last, batch[:, 1:].flatten().to(states[0].device))
        found.append(numbers.double().cpu().view(len(batch), -1, 3))
    kl, *losses = torch.cat(found).unbind(-1)
    return kl, torch.stack(losses)


def _short(value: float) -> float:
    """Six digits: what follows is rounding."""
    return float(f"{value:.6g}")
