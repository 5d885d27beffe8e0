"""Tables of perplexities, of divergences from the first checkpoint, and of the scores of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UNKNOWN
from ..evaluate.compare import TextProtocol
from ..report.summary import kl, kl_error, most_likely, share, size
from .columns import Column, Table, path_name, table

CHECKPOINT = Column("checkpoint", short=path_name)


def text_tables(rows: list[dict[str, Any]], protocol: TextProtocol) -> Iterator[Table]:
    """The tables of a text: perplexity; divergence from the first checkpoint, if one is known; both by position, if
    they were asked for. One row a checkpoint."""
    yield _perplexity_table(rows, protocol)
    if any(row["kl_mean"] is not None for row in rows):
        yield _divergence_table(rows, protocol)
    if protocol.positions:
        yield _position_table(rows)


def _perplexity_table(rows: list[dict[str, Any]], protocol: TextProtocol) -> Table:
    title = f"Perplexity, sequences of {protocol.length} tokens, activations {protocol.activations}"
    numbers = ("perplexity", Column("±", 2), "× first", Column("±", 1), Column("sequences", 4), Column("size", 3))
    made = table(title, [CHECKPOINT], numbers)
    for row in rows:
        weights = UNKNOWN if row["bytes"] is None else size(row["bytes"])
        made.add_row(row["ckpt"], *_perplexities(row), str(row["sequences"]), weights)
    return made


def _perplexities(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['perplexity']:.3f}",
        UNKNOWN if row["perplexity_stderr"] is None else f"{row['perplexity_stderr']:.3f}",
        f"{row['ratio']:.4f}" if "ratio" in row else UNKNOWN,
        f"{row['ratio_stderr']:.4f}" if row.get("ratio_stderr") is not None else UNKNOWN,
    ]


def _divergence_table(rows: list[dict[str, Any]], protocol: TextProtocol) -> Table:
    compared = [row for row in rows if row["kl_mean"] is not None]
    mass = min(row["top_mass"] for row in compared)
    kept = "" if mass == 1 else f", {most_likely(protocol.top, mass)}"
    title = f"Divergence from {rows[0]['ckpt']}: KL per token in nats{kept}"
    numbers = (
        *("KL mean", Column("±", 3), Column("median", 4), Column("99 %", 2), Column("99.9 %", 5), Column("max", 8)),
        *("same top", Column("±", 7), Column("accepted", 1), Column("±", 6)),
    )
    made = table(title, [CHECKPOINT], numbers)
    for row in compared:
        kls = [kl(row["kl_mean"]), kl_error(row["kl_stderr"])]
        kls += [kl(row[name]) for name in ("kl_median", "kl_99", "kl_99_9", "kl_max")]
        shares = [share(row[name]) for name in ("same_top", "same_top_stderr", "acceptance", "acceptance_stderr")]
        made.add_row(row["ckpt"], *kls, *shares)
    return made


def _position_table(rows: list[dict[str, Any]]) -> Table:
    numbers = ("perplexity", Column("±", 2), Column("× first", 3), Column("±", 1), "KL mean")
    made = table("By position", ["tokens before", CHECKPOINT], numbers)
    for number, part in enumerate(rows[0]["by_position"]):
        first, last = part["from"], part["to"]
        for row in rows:
            own = row["by_position"][number]
            made.add_row(
                "" if row is not rows[0] else str(first) if first == last else f"{first}–{last}",
                row["ckpt"],
                *_perplexities(own),
                kl(own.get("kl_mean")),
            )
    return made


def _score(value: float, sign: str = "") -> str:
    return format(value, f"{sign}.4f" if abs(value) < 1000 else f"{sign}.4g")


def tasks_table(found: dict[str, Any], *, every_metric: bool) -> Table:
    """One row a task and checkpoint with the main metric, or one for each metric and each member of a group."""
    asked = f"the first {found['limit']} questions, " if found["limit"] else ""
    made = table(
        f"Tasks of lm-eval {found['lm_eval']}, {asked}activations {found['activations']}",
        ["task", CHECKPOINT, Column("metric", 3)],
        ["value", Column("±", 2), Column("− first", 4), Column("recovery", 1), Column("questions", 5)],
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
                UNKNOWN if metric["stderr"] is None else _score(metric["stderr"]),
                _score(metric["difference"], sign="+"),
                UNKNOWN if metric["recovery"] is None else f"{metric['recovery']:.1f}%",
                str(row["samples"]),
            )
    return made
