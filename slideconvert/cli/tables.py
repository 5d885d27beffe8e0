"""Tables and summary lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report import quality
from ..report.summary import compared, legal_share, percent, perplexity_ratio, size, told
from .columns import Column, Table, linear_name, table

if TYPE_CHECKING:
    from ..api.convert import Conversion
    from ..api.tuning import Tuning
    from ..progress import Stopwatch
    from ..report import Report
    from ..report.inspect import Inspection
    from ..verify import LinearVerdict, Verdict


LINEAR = Column("linear", short=linear_name)


def shape_text(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def report_table(report: Report) -> Table:
    """One row a linear."""
    numbers = (Column("zeros", 1), "output error", Column("weight change", 4), Column("before", 3), Column("after", 2))
    made = table("Linears", [LINEAR, Column("scheme", 5), "pattern"], numbers)
    for layer in report.layers:
        made.add_row(
            layer.name,
            "kept" if layer.kept else layer.scheme,
            "" if layer.kept else layer.pattern,
            f"{layer.zeros / layer.weights:.1%}",
            "–" if layer.output_error is None else percent(layer.output_error),
            percent(layer.error),
            size(layer.bytes_before),
            size(layer.bytes_after),
        )
    return made


def report_summary(done: Conversion, out: Path, watch: Stopwatch) -> str:
    """What a conversion did, as text."""
    report, fetched = done.report, done.fetched
    shares = ", ".join(f"{name} {stage.seconds:.1f}" for name, stage in watch.stages.items())
    peak = max((stage.device_bytes for stage in watch.stages.values()), default=0)
    totals = report.totals
    checked = f"{report.verified} tensors re-read, intact" if report.verified else "NOT VERIFIED (--no-verify)"
    found = report.perplexity
    ratio = perplexity_ratio(report)
    measured = [
        *(
            [f"perplexity {found['source']:.3f} -> {found['output']:.3f}{f', × {ratio}' if ratio else ''}"]
            if found
            else []
        ),
        *[f"measured {figure.name}: {figure.value} {figure.about}" for figure in compared(report)],
    ]
    legal = legal_share(report)
    wrote = "already finished: " if done.already else "wrote    "
    lines = [
        f"{wrote}{out}: {size(totals.file_bytes_before)} -> {size(totals.file_bytes_after)}, "
        f"{totals.zeros / totals.weights:.1%} of {totals.weights / 1e6:.1f} million weights are zero",
        *([f"zeros    {legal:.1%} of all blocks had enough zeros already"] if legal is not None else []),
        *[f"measured {figure.name}: {figure.value} {figure.about}" for figure in quality.figures(report)],
        *measured,
        f"files    {checked}",
        *_quality_lines(report),
        f"time     {watch.seconds:.1f} s ({shares})" + (f", {size(peak)} of GPU memory" if peak else ""),
        *([f"fetched  {size(fetched)} of shards, those needed again included"] if fetched else []),
        *[f"note     {note}" for note in told(report)],
        f"look     {out / 'report.html'}",
    ]
    return "\n".join(lines)


def _quality_lines(report: Report) -> list[str]:
    """What is known about the quality of an output, which intact files do not show."""
    if not quality.measured(report):
        return ["quality  not measured: slideconvert eval SOURCE CKPT --text FILE, or convert with --text"]
    found = quality.warnings(report)
    return [f"WARNING  {sentence}" for sentence in found] or ["quality  no warning"]


def verdict_table(verdict: Verdict, *, every_linear: bool) -> Table:
    """One row a linear, or one for all sound linears of a kind and one for each faulty one."""
    numbers = ("count", Column("zeros", 2), Column("largest change", 1), Column("size", 4))
    made = table("Verification", [LINEAR, Column("scheme", 3), "pattern", "verdict"], numbers)
    groups: dict[tuple[str, ...], list[LinearVerdict]] = {}
    for linear in verdict.linears:
        single = every_linear or linear.fault
        name = linear.name if single else linear.name.rpartition(".")[2]
        key = (name, linear.scheme, linear.pattern, "FAULT" if linear.fault else "sound")
        groups.setdefault(key, []).append(linear)
    for labels, members in groups.items():
        weights = sum(member.shape[0] * member.shape[1] for member in members)
        changes = [member.error for member in members if member.error is not None]
        made.add_row(
            *labels,
            str(len(members)),
            f"{sum(member.zeros for member in members) / weights:.1%}" if weights else "",
            percent(max(changes)) if changes else "–",
            size(sum(member.bytes for member in members)),
        )
    return made


def inspect_table(found: Inspection) -> Table:
    """One row a linear."""
    labels = (LINEAR, Column("scheme", 1), "pattern", Column("layout", 4))
    made = table(found.path, labels, [Column("shape", 2), "zeros", "weight change", Column("size", 3)])
    for linear in found.linears:
        made.add_row(
            linear.name,
            f"{linear.scheme} ternary" if linear.ternary else linear.scheme,
            linear.pattern or "–",
            linear.layout,
            shape_text(linear.shape),
            f"{linear.zeros / linear.weights:.1%}",
            "–" if linear.error is None else percent(linear.error),
            size(linear.bytes),
        )
    return made


def inspect_summary(found: Inspection) -> str:
    """The checkpoint as a whole, as text."""
    weights, zeros = sum(x.weights for x in found.linears), sum(x.zeros for x in found.linears)
    revision = found.source.get("revision")
    origin = f"source   {found.source['id']}" + (f" at {revision}" if revision else "") if found.source else ""
    lines = [
        f"model    {found.model_type}, {len(found.linears)} decoder linears, {weights / 1e6:.1f} million weights",
        *([origin] if origin else []),
        *([f"recipe   {_settings(found.recipe)}"] if found.recipe else []),
        f"zeros    {zeros / weights:.1%}",
        f"bytes    {size(found.bytes)}",
        *([f"sha256   of {found.hashed or 'no'} files recorded"] if found.layout else []),
    ]
    return "\n".join(lines)


def _settings(values: Mapping[str, Any]) -> str:
    """Names and values in one line; those of a part in parentheses."""
    parts = (f"{k} ({_settings(v)})" if isinstance(v, Mapping) else f"{k}: {v}" for k, v in values.items())
    return ", ".join(parts)


def doctor_table(found: dict[str, Any]) -> Table:
    """One row a fact."""
    made = table("slideconvert doctor", ["what", "found"], [])
    made.add_row("slideconvert", found["slideconvert"])
    made.add_row("python", f"{found['python']} on {found['system']}, {found['cores_used']} cores used")
    for name, version in found["packages"].items():
        made.add_row(name, version or "not installed")
    for gpu in found["gpus"]:
        units = [kind for kind in ("int8", "fp8") if gpu[f"sparse_{kind}"]]
        made.add_row(
            "GPU",
            f"{gpu['name']}, {size(gpu['memory_bytes'])}, compute capability {gpu['compute_capability']}, "
            f"2:4 units for {', '.join(units) or 'nothing we use'}",
        )
    for device, backends in found["backends"].items():
        for name, refusal in backends.items():
            made.add_row(f"{device}: {name}", refusal or "ready")
    kernels = found["kernel_cache"]
    made.add_row("kernel cache", f"{kernels['path']}{': ' if kernels['fault'] else ''}{kernels['fault']}")
    for one in kernels["tables"]:
        known = one.get("fault") or f"{one['gpu']}, {one['host']}: times of {one['linears']} linears"
        made.add_row(one["file"], known if one.get("used") else f"{known} (not used here)")
    cache = found["huggingface_cache"]
    made.add_row("Hugging Face cache", f"{cache['path']}, {size(cache['free_bytes'])} free")
    made.add_row("Hugging Face token", "found" if found["huggingface_token"] else "none (only needed for gated models)")
    for advice in found["advice"]:
        made.add_row("advice", advice)
    return made


def backends_table(rows: list[dict[str, Any]]) -> Table:
    """One row a kind of linear: what runs it here, and why."""
    made = table("linears on this machine", [Column("linears", 2), "kind", "backend", "why"], [Column("number", 1)])
    for row in rows:
        made.add_row(", ".join(row["linears"]), row["kind"], row["backend"], row["why"], str(row["number"]))
    return made


def tuned_table(found: Tuning) -> Table:
    """One row a linear and number of tokens: the host's dense kernel, what runs instead, and what that gains."""
    key = found.key
    title = f"{key.gpu}, {key.host}: microseconds of whole linears"
    labels = ("linear", Column("is", 3), "runs on")
    made = table(title, labels, ["tokens", Column("stock", 2), Column("chosen", 1), "speed-up"])
    for one in found.linears:
        names = ", ".join(one.names)
        if not one.chosen:
            made.add_row(one.linear, names, "not known: times are missing", "", "", "", "")
        for number, (tokens, taken) in enumerate(one.chosen.items()):
            first = number == 0
            stock = one.stock.get(tokens)
            made.add_row(
                one.linear if first else "", names if first else "", one.ways[tokens], str(tokens),
                f"{stock:.1f}" if stock else "–", f"{taken:.1f}", f"{stock / taken:.2f}" if stock else "–",
            )  # fmt: skip
    return made
