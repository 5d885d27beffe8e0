"""Tables of perplexities and of the scores of tasks."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..report.summary import size
from .tables import table


def eval_table(rows: list[dict[str, Any]], length: int, activations: str) -> Table:
    """One row a checkpoint."""
    title = f"Perplexity, sequences of {length} tokens, activations {activations}"
    made = table(title, ["checkpoint"], ["perplexity", "× first", "sequences", "size"])
    for row in rows:
        made.add_row(
            row["ckpt"], f"{row['perplexity']:.3f}", f"{row['ratio']:.3f}", str(row["sequences"]), size(row["bytes"])
        )
    return made


def _score(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.4f" if abs(value) < 1000 else f"{sign}.4g")


def tasks_table(found: dict[str, Any], *, every_metric: bool) -> Table:
    """One row a task and checkpoint with the main metric, or one for each metric and each member of a group."""
    asked = f"the first {found['limit']} questions, " if found["limit"] else ""
    made = table(
        f"Tasks of lm-eval {found['lm_eval']}, {asked}activations {found['activations']}",
        ["task", "checkpoint", "metric"],
        ["value", "±", "− first", "questions"],
    )
    for row in found["tasks"]:
        if row["part_of"] and not every_metric:
            continue
        for metric in row["metrics"] if every_metric else row["metrics"][:1]:
            name = metric["metric"] if metric["filter"] == "none" else f"{metric['metric']}, {metric['filter']}"
            made.add_row(
                row["task"] + (f", {row['shots']} shots" if row["shots"] else ""),
                row["ckpt"],
                name + {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]],
                _score(metric["value"]),
                "–" if metric["stderr"] is None else _score(metric["stderr"]),
                _score(metric["difference"], sign="+"),
                str(row["samples"]),
            )
    return made
