"""The journal of a conversion for --resume: its settings, and a note for each written unit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calibrate.run import END_TO_END, RunSettings, trainings
from ..checkpoint.reader import Checkpoint
from ..checkpoint.snapshot import Snapshot
from ..permute.permutations import Permutations, parse_permutations
from ..plan.plan import Plan
from ..report import LayerReport, Training
from .linear import ConvertedLinear

PROCEDURE = 4
"""What calibration does with the same settings, as a number: finished layers of another procedure do not go with the
others. 2: smoothed sources, solvers that see fitted sequences alone. 3: training that halves its rate where the
first epoch lowers nothing. 4: AdamW's second moment decays with 0.95."""


def job_state(plan: Plan, settings: RunSettings, tokens: Tensor | None) -> dict[str, object]:
    """The settings that must be equal for a resumed run to continue this one."""
    return {
        **source_state(plan.source, plan.snapshot),
        "recipe": plan.recipe.describe(),
        **({} if tokens is None else {"procedure": PROCEDURE, **calibration_state(tokens, settings)}),
        "layout": plan.layout,
        "shard_bytes": plan.recipe.shard_bytes,
    }


def source_state(source: Checkpoint, snapshot: Snapshot) -> dict[str, object]:
    """The source of a job, and what identifies each of its weight files."""
    files = {path.name: source.shard_store.identity(path) for path in source.shards}
    return {"source": str(source.path.resolve()), "revision": snapshot.revision, "source_files": files}


def calibration_state(tokens: Tensor, settings: RunSettings) -> dict[str, object]:
    """The hash of the tokens, and the settings that determine the order of floating-point sums."""
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    kind = torch.device(settings.device).type  # ranks have a GPU each
    threads = torch.get_num_threads() if kind == "cpu" else None
    return {
        "calibration_tokens": digest,
        "device": kind,
        "batch_tokens": settings.batch_tokens,
        "threads (OMP_NUM_THREADS)": threads,
        "dtype": str(settings.dtype),
    }


def unit_note(converted: Sequence[ConvertedLinear]) -> dict[str, Any]:
    """The note of a unit: reports of its linears, their trainings, and the permutations of the layer."""
    note: dict[str, Any] = {"layers": [vars(linear.report) for linear in converted], "training": []}
    solved = converted[-1].solved if converted else None
    if solved:
        layer = converted[-1].report.layer
        note["training"] = [vars(training) for training in trainings(layer, solved)]
        note["orders"] = {part: order.tolist() for part, order in solved.permutations.items()}
    return note


@dataclass(frozen=True)
class Noted:
    """The notes of all units. permutations: by layer, relative to the source of this conversion."""

    layers: tuple[LayerReport, ...]
    training: tuple[Training, ...]
    permutations: dict[int, Permutations]

    @classmethod
    def of(cls, notes: Sequence[dict[str, Any]], where: str) -> Noted:
        """Combine notes. InputError about `where` for invalid permutations."""
        training = dict.fromkeys(Training.from_dict(part) for note in notes for part in note["training"])
        return cls(
            layers=tuple(LayerReport.from_dict(layer) for note in notes for layer in note["layers"]),
            training=tuple(sorted(training, key=lambda part: part.part == END_TO_END)),
            permutations={
                note["layers"][0]["layer"]: parse_permutations(note["orders"], where)
                for note in notes
                if note.get("orders")
            },
        )
