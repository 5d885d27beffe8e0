"""Everything of an output besides its weights: config, index, tokenizer, kernels, verification, reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibrate.run import HIDDEN, RunSettings
from ..checkpoint.files import CHANNEL_ORDERS, CHANNEL_SCALES, CONFIG, INDEX, companions
from ..checkpoint.reader import Checkpoint
from ..checkpoint.shards import index_json
from ..checkpoint.staging import WORK, file_sha256, write_file, writing
from ..errors import VerificationError
from ..evaluate.compare import COMPARED, SEQUENCES, TextProtocol, measure
from ..evaluate.kept_base import check_kept_bytes
from ..formats.quantization_config import output_config
from ..formats.record import config_text, with_reports
from ..permute.permutations import Permutations, to_json
from ..plan.plan import Plan
from ..progress import Progress
from ..report import Report
from ..report.limits import Limits
from ..report.render import render_reports
from ..report.source_card import source_card
from ..smooth import scales
from ..smooth.scales import Scales
from ..texts.named import Text, name_of
from ..verify import verify_checkpoint
from .bundle import bundle_kernels
from .held_out import measure_held_out

FINISH = "finish"
"""The stage of everything besides weights and checks: config, tokenizer, kernels, reports, publishing."""


@dataclass(frozen=True)
class Weights:
    """The written weight files. files: sha256 by name. moved, permutations: of the output's channels by layer, relative
    to the source and to the first source. scales: of the output's channels, relative to the first source."""

    files: dict[str, str]
    moved: dict[int, Permutations]
    permutations: dict[int, Permutations]
    scales: Scales


@dataclass(frozen=True)
class Measuring:
    """How far an output is from its source. text: for `read_documents`, on whose first `sequences` sequences
    both are compared, None for none. limits: on what is measured, there and on held-out calibration text.
    column: of the text."""

    text: Text | None = None
    sequences: int = SEQUENCES
    limits: Limits = Limits()
    column: str | None = None


@dataclass(frozen=True)
class Checks:
    """How an output is checked. settings: how models run. verify: against the source. measuring: what to
    measure. held: calibration tokens [sequences, length] int64 that were held out of the fit, to compare source and
    output on; None without calibration."""

    settings: RunSettings
    verify: bool = True
    measuring: Measuring = Measuring()
    held: Tensor | None = None

    def check(self, vocabulary: int) -> None:
        """InputError if measuring would take more disk space than it may, with a model of so many words."""
        if self.measuring.text:
            how = TextProtocol()
            words = (self.measuring.sequences, how.length, how.top, vocabulary, how.limit)
            check_kept_bytes(*words, hint="lower --sequences, or measure afterwards: slideconvert eval")


def finish(plan: Plan, folder: Path, weights: Weights, report: Report, checks: Checks, progress: Progress) -> Report:
    """Complete the output in `folder`, whose weight files exist already, and check it.

    Returns the report with hashes and verdict. VerificationError with the first fault, QualityError beyond a limit.
    """
    files = dict(weights.files)
    progress(FINISH, 0, 1)
    with writing(folder):
        index = index_json(plan.shards)
        if index:
            files[INDEX] = write_file(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
        if weights.permutations:
            files[CHANNEL_ORDERS] = write_file(folder / CHANNEL_ORDERS, to_json(weights.permutations).encode())
        if weights.scales:
            text = scales.to_json(weights.scales)
            files[CHANNEL_SCALES] = write_file(folder / CHANNEL_SCALES, text.encode())
        for name in companions(plan.snapshot.path):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(plan.snapshot.path / name, folder / name)
            files[name] = file_sha256(folder / name)
        kernels = (
            bundle_kernels(folder)
            if any(not linear.kept and linear.scheme.quantized for linear in plan.linears)
            else {}
        )
        record = replace(plan.record, files=dict(sorted(files.items())), kernels=kernels)
        config = output_config(plan.source.config, record, [plan.architecture.head, *plan.kept])
        write_file(folder / CONFIG, config_text(config))
    verified = None
    if checks.verify:
        output = Checkpoint.open(folder)
        verdict = verify_checkpoint(output, source=plan.source, device=checks.settings.device, progress=progress)
        if verdict.faults:
            raise VerificationError(
                f"the output fails verification: {verdict.faults[0]} ({len(verdict.faults)} faults)",
                hint="nothing was published; the disk may be failing: delete the folder and convert again",
            )
        verified = verdict.tensors
    report = replace(report, files=record.files, verified=verified, source_card=source_card(plan.snapshot.path))
    if checks.held is not None:
        report = _compare(plan, folder, weights, report, checks, progress)
    if checks.measuring.text:
        report = replace(report, **_measure(plan, folder, checks, progress))
    progress(FINISH, 0, 1)
    checks.measuring.limits.check(report)
    with writing(folder):
        reports = {name: write_file(folder / name, text) for name, text in render_reports(report).items()}
        write_file(folder / CONFIG, config_text(with_reports(config, reports)))
    return report


def _compare(plan: Plan, folder: Path, weights: Weights, report: Report, checks: Checks, progress: Progress) -> Report:
    """The report with the output errors of all converted linears, and with the predictions on the held-out tokens."""
    assert checks.held is not None
    scratch = folder / WORK / HIDDEN
    held_out, errors = measure_held_out(
        plan.source, Checkpoint.open(folder), weights.moved, checks.held, checks.settings, scratch, progress
    )
    layers = [layer if layer.kept else replace(layer, output_error=errors[layer.name]) for layer in report.layers]
    return replace(report, layers=tuple(layers), held_out=held_out)


def _measure(plan: Plan, folder: Path, checks: Checks, progress: Progress) -> dict[str, Any]:
    """How the output compares with the source on a text, as fields of the report."""
    text = checks.measuring.text
    assert text is not None
    with writing(folder):
        (folder / WORK).mkdir(exist_ok=True)
    told = checks.measuring
    how = TextProtocol(told.sequences, column=told.column, device=checks.settings.device, scratch=folder / WORK)
    checkpoints = {"source": plan.source, "output": Checkpoint.open(folder)}
    found = measure(checkpoints, text, how, progress=progress)
    before, after = found.rows
    quantized = any(not one.kept and one.scheme.quantized and one.scheme.activation_bits == 8 for one in plan.linears)
    activations = "quantized per token" if quantized else "not quantized"
    protocol = (
        f"the first {after['sequences']} sequences of {how.length} tokens of {Path(name_of(text)).name}, "
        f"exp(mean next-token cross-entropy inside the sequences), float32, activations {activations}"
    )
    return {
        "perplexity": {"source": before["perplexity"], "output": after["perplexity"]},
        "perplexity_stderr": {"source": before["perplexity_stderr"], "output": after["perplexity_stderr"]},
        "perplexity_protocol": protocol,
        "comparison": {"top": how.top, "tokens": after["tokens"], **{name: after[name] for name in COMPARED}},
    }
