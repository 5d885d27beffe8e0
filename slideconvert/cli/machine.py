"""What `convert` prints for machines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import REPORT_JSON
from ..report import quality
from ..report.summary import told

if TYPE_CHECKING:
    from ..api.convert import Conversion
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
