"""What `convert` and `plan` print for machines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import REPORT_JSON
from ..report import quality
from ..report.summary import told

if TYPE_CHECKING:
    from ..api.convert import Conversion
    from ..plan.plan import Plan
    from ..progress import Stopwatch


def result_json(done: Conversion, out: Path, watch: Stopwatch) -> dict[str, Any]:
    """What `convert --json` prints: totals and verdict; the linears are in OUT/report.json.

    watch: how long each stage took; they sum to the whole.
    """
    report = done.report
    return {
        "out": str(out),
        "already_finished": done.already,
        "source": report.source,
        "revision": report.revision,
        "layout": report.layout,
        "recipe": report.recipe,
        "totals": vars(report.totals),
        "output_error": quality.output_error_json(report),
        "held_out": None if report.held_out is None else asdict(report.held_out),
        "warnings": quality.warnings(report),
        "verified_tensors": report.verified,
        "perplexity": report.perplexity,
        "perplexity_stderr": report.perplexity_stderr,
        "comparison": report.comparison,
        "notes": told(report),
        "seconds": round(watch.seconds, 3),
        "stages": {name: {**vars(stage), "seconds": round(stage.seconds, 3)} for name, stage in watch.stages.items()},
        "report": str(out / REPORT_JSON),
        "fetched_bytes": done.fetched,
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """What `plan --json` prints."""
    from ..plan.memory import needs

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
                "slid_columns": linear.slid_columns,
                "bytes_before": linear.stored.bytes,
                "bytes_after": sum(spec.bytes for spec in linear.outputs),
            }
            for linear in plan.linears
        ],
    }
