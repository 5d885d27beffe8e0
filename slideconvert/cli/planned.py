"""What `plan` prints: for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.settings import settings_of
from ..calibrate.run import RunSettings
from ..checkpoint.disk import free_bytes
from ..convert.disk_space import check_disk_space
from ..errors import DiskFullError
from ..evaluate.compare import SEQUENCES
from ..plan.calibration import Running, sequence_length
from ..plan.disk import disk_use
from ..plan.memory import direct_memory, needs
from ..report.summary import size
from .columns import Column, Table, table
from .tables import LINEAR, shape_text

if TYPE_CHECKING:
    from ..plan import needs as needed
    from ..plan.linear import LinearPlan
    from ..plan.plan import Plan
    from .convert import ConvertCommandOptions

UNSEEN = "Planned from config.json and its architecture alone: no weights were looked at."
STANDS_IN = (
    "The patterns meet the target and would be best if all linears were equally sensitive to pruning. convert measures "
    "errors, and may choose others that meet it too."
)


def plan_table(plan: Plan, *, every_linear: bool) -> Table:
    """One row a linear, or one for all linears of a kind that are treated alike."""
    shown = (LINEAR, Column("scheme", 1), "pattern", Column("method", 3))
    made = table("Plan", shown, ["count", Column("shape", 2), Column("K'", 4), "before", "after"])
    groups: dict[tuple[str, ...], list[LinearPlan]] = {}
    for linear in plan.linears:
        name = linear.linear.name if every_linear else linear.linear.kind
        what = ("kept", "", "") if linear.kept else (linear.scheme.name, str(linear.pattern), linear.method or "none")
        slid = str(linear.slid_columns or "")
        groups.setdefault((name, *what, shape_text(linear.stored.shape), slid), []).append(linear)
    for (*labels, shape, slid), members in groups.items():
        before = sum(member.stored.bytes for member in members)
        after = sum(spec.bytes for member in members for spec in member.outputs)
        made.add_row(*labels, str(len(members)), shape, slid, size(before), size(after))
    return made


def plan_summary(plan: Plan, options: ConvertCommandOptions, out: Path | None) -> str:
    """The totals of a plan as text."""
    patterns = {str(linear.pattern): linear.pattern for linear in plan.linears if not linear.kept}
    ideal = ", ".join(
        f"{name} {pattern.ideal_speedup:.2f}×"
        for name, pattern in patterns.items()
        if pattern.prunes and pattern.ideal_speedup
    )
    settings = settings_of(options, here=False)
    shards = "1 shard" if len(plan.shards) == 1 else f"{len(plan.shards):,} shards"
    lines = [
        f"source   {plan.snapshot.id}" + (f" at {plan.snapshot.revision}" if plan.snapshot.revision else ""),
        f"weights  {plan.weights / 1e6:.1f} million in {len(plan.linears)} linears, layout {plan.layout}",
        f"files    {size(plan.bytes_before)} -> {size(plan.bytes_after)} in {shards}",
        *_disk_lines(plan, settings, out),
        *_memory_lines(plan, settings, options.device),
        *([f"ideal speed-up over dense of the same precision: {ideal} (an upper bound)"] if ideal else []),
        *[f"then     {step}" for step in afterwards(options)],
        *[f"note     {note}" for note in notes(plan, options)],
        *([] if plan.source.shard_store.known_by == "weights" else [f"note     {UNSEEN}"]),
    ]
    return "\n".join(lines)


def notes(plan: Plan, options: ConvertCommandOptions) -> list[str]:
    """What a user must know before using the result, and about patterns that convert is yet to choose."""
    chosen = options.target_speedup is not None or options.density is not None
    return [*plan.notes, *([STANDS_IN] if chosen else [])]


def afterwards(options: ConvertCommandOptions) -> list[str]:
    """What convert does when the weights are written, in its order."""
    steps = ["read back and check every weight" if options.verify else "NOT VERIFIED (--no-verify)"]
    if options.text:
        steps.append(f"measure the perplexity on {options.text}, {options.sequences or SEQUENCES} sequences at most")
    limits = {"KL divergence": options.max_kl, "output error": options.max_output_error}
    steps += [f"publish nothing with a {name} above {most:g}" for name, most in limits.items() if most is not None]
    if options.push:
        steps.append(f"push to {options.push}, which is {'public' if options.public else 'private'} if it is new")
    return steps


def _disk_lines(plan: Plan, settings: RunSettings, out: Path | None) -> list[str]:
    """What the output takes, what is beside it until it is finished, and whether there is space for both."""
    use = disk_use(plan, settings.keep_on, running(kind(settings.device), settings))
    beside = {"results for --resume": use.resume, "hidden states": use.hidden}
    parts = [f"{size(count)} of {what}" for what, count in beside.items() if count]
    until = f" until it is finished, {' and '.join(parts)} among them" if parts else ""
    line = f"disk     about {size(use.total)}{until}"
    if out is None:
        return [line]
    try:
        check_disk_space(plan, out, settings)
    except DiskFullError as error:
        return [line, f"WARNING  {error}"]
    return [f"{line}; {size(free_bytes(out))} are free at {out}"]


def _memory_lines(plan: Plan, settings: RunSettings, device: str | None) -> list[str]:
    """What calibration shows the model, and the memory that it takes on a CPU and on a GPU, or on the device named."""
    base = direct_memory(plan)
    if not plan.calibrated:
        return [f"memory   about {size(base)}"]
    named = None if device in (None, "auto") else kind(settings.device)
    host = base + needs(plan, running("cpu", settings)).peak
    calibration, length = plan.recipe.calibration, sequence_length(plan.recipe.calibration, plan.source)
    more = f"; {plan.generated} more that the model generates" if plan.generated else ""
    return [
        f"memory   about {size(base)} beside the GPU"
        if named == "cuda"
        else f"memory   about {size(host)} if a CPU calibrates",
        f"text     {calibration.samples} sequences of {length} tokens of {calibration.describe_text()}{more}",
        *([] if named == "cpu" else _gpu_lines(needs(plan, running("cuda", settings)), settings)),
    ]


def _gpu_lines(need: needed.Needs, settings: RunSettings) -> list[str]:
    """The memory of a GPU, with hidden states where the settings keep them."""
    offload = (
        f"{size(need.offload_device)} ({_by_stage(need.stages(offload=True))}), and {size(need.offload_host)} of CPU "
        "memory"
    )
    if settings.offload:
        return [f"GPU      with --offload {offload}"]
    if settings.keep_on != "device":
        elsewhere = max(stage.hidden for stage in need.stages().values())
        return [f"GPU      about {size(need.device)}, and {size(elsewhere)} of hidden states on {settings.keep_on}"]
    left = need.end_training.host
    host = f", and {size(left)} of CPU memory" if left else ""
    return [
        f"GPU      about {size(need.peak)} ({_by_stage(need.stages())}){host}",
        f"         with --offload {offload}",
    ]


def _by_stage(stages: Mapping[str, needed.Stage]) -> str:
    """What each stage takes: hidden states plus the rest."""
    return "; ".join(
        f"{name} {f'{size(stage.hidden)} + ' if stage.hidden else ''}{size(stage.device)}"
        for name, stage in stages.items()
    )


def kind(device: str) -> str:
    """cuda of cuda:1."""
    return device.partition(":")[0]


def running(device: str, settings: RunSettings) -> Running:
    """How a device of this kind would calibrate by these settings."""
    return replace(settings.running, kind=device)


def plan_json(plan: Plan, options: ConvertCommandOptions, out: Path | None) -> dict[str, Any]:
    """What `plan --json` prints. Calibration memory is that of a GPU, unless the device named is a CPU."""
    settings = settings_of(options, here=False)
    device = "cuda" if options.device in (None, "auto") else kind(settings.device)
    calibrated = plan.calibrated
    use = disk_use(plan, settings.keep_on, running(device, settings))
    return {
        "source": plan.snapshot.id,
        "revision": plan.snapshot.revision,
        "known_by": plan.source.shard_store.known_by,
        "layout": plan.layout,
        "recipe": plan.record.recipe,
        "weights": plan.weights,
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "peak_memory": direct_memory(plan) + (needs(plan, running("cpu", settings)).peak if calibrated else 0),
        "calibration_memory": needs(plan, running(device, settings)).to_json() if calibrated else None,
        "calibration": {"device": device, "hidden_states_on": settings.keep_on, "offload": settings.offload},
        "disk": {**use.to_json(), "free": None if out is None else free_bytes(out)},
        "then": afterwards(options),
        "shards": {shard.file: sum(unit.bytes for unit in shard.units) for shard in plan.shards},
        "notes": notes(plan, options),
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
