"""What `convert` and `plan` print for machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import REPORT_JSON

if TYPE_CHECKING:
    from ..plan.plan import Plan
    from ..progress import Stopwatch
    from ..report import Report


def result_json(report: Report, out: Path, seconds: float, watch: Stopwatch) -> dict[str, Any]:
    """What `convert --json` prints: totals and verdict; the linears are in OUT/report.json.

    stages: of the whole, what each took from its first word to its last.
    """
    errors = {layer.name: layer.error for layer in report.layers}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "out": str(out),
        "source": report.source,
        "revision": report.revision,
        "layout": report.layout,
        "recipe": report.recipe,
        "totals": vars(report.totals),
        "worst": {"name": worst, "error": errors[worst]},
        "verified_tensors": report.verified,
        "perplexity": report.perplexity,
        "notes": list(report.notes),
        "seconds": round(seconds, 3),
        "stages": {name: {**vars(stage), "seconds": round(stage.seconds, 3)} for name, stage in watch.stages.items()},
        "report": str(out / REPORT_JSON),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """What `plan --json` prints."""
    from ..calibrate.needs import needs

    return {
        "source": plan.snapshot.id,
        "revision": plan.snapshot.revision,
        "known_by": plan.source.shard_store.known_by,
        "layout": plan.layout,
        "recipe": plan.record.recipe,
        "weights": plan.weights,
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "peak_memory": plan.peak_memory,
        "calibration_memory": needs(plan).to_json() if plan.calibrated else None,
        "shards": {shard.file: sum(unit.bytes for unit in shard.units) for shard in plan.shards},
        "notes": list(plan.notes),
        "linears": [
            {
                "name": linear.linear.name,
                "shape": list(linear.stored.shape),
                "scheme": linear.scheme.name,
                "pattern": None if linear.kept else str(linear.pattern),
                "method": linear.method,
                "kept": linear.kept,
                "slid_columns": linear.slid_columns(plan.layout),
                "bytes_before": linear.stored.bytes,
                "bytes_after": sum(spec.bytes for spec in linear.outputs),
            }
            for linear in plan.linears
        ],
    }
