"""The order of a rotation: calibration text -> pruning problems -> search -> fold -> write -> verify -> publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save

from ..calibrate.run import RunSettings, memory_options_named
from ..calibrate.tokens import calibration_tokens
from ..checkpoint.claim import Claim
from ..checkpoint.container import TensorSpec
from ..checkpoint.files import CARD, CONFIG, INDEX, companions
from ..checkpoint.origin import ROTATION, ROTATION_NOTE
from ..checkpoint.reader import TORCH_DTYPES, Checkpoint
from ..checkpoint.shards import divide, index_json
from ..checkpoint.snapshot import Snapshot
from ..checkpoint.staging import WORK, Staging, file_sha256, write_file, writing
from ..checkpoint.writer import Shard, WeightWriter, read_journals
from ..convert.journal import calibration_state, source_state
from ..core.choices import ALL
from ..core.patterns import BlockPattern
from ..errors import HubError, InputError, OutputError, VerificationError
from ..models.completeness import check_tied
from ..models.decoder import Decoder
from ..models.families import architecture_of
from ..models.finite import check_all_finite
from ..plan.calibration import Calibration, without_folders
from ..plan.recipe import Recipe
from ..progress import Progress
from .card import card
from .check import TIED, verify_rotated
from .folding import Folding
from .problems import Problems
from .record import MATRICES, RotationRecord, origin_words
from .refusals import check_rotatable
from .rotations import Rotations
from .search import Found, Goal, search

LESS_MEMORY = "continue with --resume and --keep-on cpu or disk, or restart with a lower --batch-tokens"
"""What to do where memory runs out."""


@dataclass(frozen=True)
class Job:
    """What to rotate and how. pattern: that the weights are to be pruned to. parts: choices.ROTATED. steps: of the
    search."""

    snapshot: Snapshot
    source: Checkpoint
    pattern: BlockPattern
    parts: str
    steps: int
    calibration: Calibration

    def state(self, settings: RunSettings, tokens: torch.Tensor) -> dict[str, object]:
        """The settings that must be equal for a resumed run to continue this one."""
        own = {"command": "rotate", "pattern": str(self.pattern), "parts": self.parts, "steps": self.steps}
        return {**source_state(self.source, self.snapshot), **own, **calibration_state(tokens, settings)}


@dataclass(frozen=True)
class Rotated:
    """The result. record: the note in the folder. verified: the number of tensors that were checked, None without.
    untied: bytes of the head that was tied to the embedding before, 0 if it was not or still is."""

    record: RotationRecord
    verified: int | None
    untied: int


def rotate(job: Job, claim: Claim, *, settings: RunSettings, resume: bool, verify: bool, progress: Progress) -> Rotated:
    """Carry out a rotation into the claimed folder.

    InputError for a source that cannot be rotated, OutputError for a full disk or memory, VerificationError for an
    output that is not the source, rotated; partial results of the latter two remain for resume=True.
    """
    check_rotatable(job.source, job.pattern, job.parts)
    check_tied(job.source)
    companions(job.snapshot.path)  # refuses what cannot be copied at the end
    tokens = calibration_tokens(job.calibration, job.source)
    if job.source.shard_store.disk_use is None:  # minutes before the last tensor is folded
        check_all_finite(job.source, job.source.tensors)
    staging = Staging(claim.path, job.state(settings, tokens), resume=resume)
    try:
        with memory_options_named(settings.device, LESS_MEMORY):
            found = _search(job, tokens, settings, staging.path / WORK, progress)
            claim.check()
            folding = Folding(job.source, found.rotations, settings.device)
            shards = divide(folding.specs, folding.architecture.layer_of, Recipe.shard_bytes)
            files = _write_weights(folding, shards, staging.path, progress)
            claim.check()
            job.source.check_unchanged()
    except (OutputError, HubError):
        raise
    except InputError:
        if not resume and claim.holds:
            staging.discard()
        raise
    record = _write_rest(job, found, folding, shards, files, staging.path)
    checked = _verified(job, staging.path, settings, progress) if verify else None
    claim.check()
    staging.publish()
    return Rotated(record, checked, folding.specs[-1].bytes if folding.untied else 0)


def _search(job: Job, tokens: torch.Tensor, settings: RunSettings, folder: Path, progress: Progress) -> Found:
    architecture = architecture_of(job.source.config)
    identity = Rotations.identity(architecture, job.source.config, residual=job.parts == ALL)
    decoder = Decoder(job.source, torch.device(settings.device), settings.dtype)
    problems = Problems(decoder, identity, settings, folder)
    problems.collect(tokens, progress)
    return search(problems, identity, Goal(job.pattern, job.steps), settings.device, folder, progress)


def _write_weights(folding: Folding, shards: tuple[Shard, ...], folder: Path, progress: Progress) -> dict[str, str]:
    """The weight files; returns their sha256 by name."""
    total = sum(unit.bytes for shard in shards for unit in shard.units)
    with closing(WeightWriter(folder, list(shards))) as writer:
        done = total - sum(unit.bytes for unit in writer.remaining)
        for unit in writer.remaining:
            progress("fold", done, total)
            writer.write(unit, partial(_contents, folding), {})
            done += unit.bytes
        progress("fold", total, total)
    return read_journals(folder, shards)[1]


def _contents(folding: Folding, spec: TensorSpec) -> Iterable[torch.Tensor]:
    return folding.pieces(spec, TORCH_DTYPES[spec.dtype])


def _write_rest(
    job: Job, found: Found, folding: Folding, shards: tuple[Shard, ...], weights: dict[str, str], folder: Path
) -> RotationRecord:
    """Everything besides the weights; returns the note."""
    files, source = dict(weights), job.snapshot.path
    config = {**job.source.config, **({TIED: False} if folding.untied else {})}
    with writing(folder):
        (folder / ROTATION).mkdir(exist_ok=True)
        files[CONFIG] = write_file(folder / CONFIG, (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())
        if index := index_json(shards):
            files[INDEX] = write_file(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
        matrices = {name: tensor.cpu().contiguous() for name, tensor in found.rotations.tensors().items()}
        files[MATRICES] = write_file(folder / MATRICES, save(matrices))
        for name in companions(source):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
            files[name] = file_sha256(folder / name)
        record = RotationRecord(
            source={"id": job.snapshot.id, "revision": job.snapshot.revision},
            origin=origin_words(job.snapshot, str(job.pattern)),
            pattern=str(job.pattern),
            parts=job.parts,
            steps=job.steps,
            calibration=without_folders({"calibration": job.calibration.describe()})["calibration"],
            before=found.before,
            after=found.after,
            files=dict(sorted(files.items())),
        )
        write_file(folder / ROTATION_NOTE, record.to_bytes())
        write_file(folder / CARD, card(record, source, untied=folding.untied))
    return record


def _verified(job: Job, folder: Path, settings: RunSettings, progress: Progress) -> int:
    verdict = verify_rotated(Checkpoint.open(folder), source=job.source, device=settings.device, progress=progress)
    if verdict.faults:
        raise VerificationError(
            f"the output fails verification: {verdict.faults[0]} ({len(verdict.faults)} faults)",
            hint="nothing was published; the disk may be failing: delete the folder and rotate again",
        )
    return verdict.tensors
