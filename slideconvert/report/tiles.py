"""The key figures of the HTML report, as tiles: what was measured of the output, then sizes and patterns."""

from __future__ import annotations

from ..core.patterns import parse_pattern
from .page import escaped
from .quality import figures
from .record import Report
from .summary import (
    compared,
    legal_share,
    patterns,
    percent,
    perplexities,
    perplexity_ratio,
    size,
    zero_share,
)


def key_figures(report: Report) -> str:
    """All tiles as markup."""
    sums = report.totals
    files = f"{size(sums.file_bytes_before)} → {size(sums.file_bytes_after)}"
    linears = f"linears {size(sums.linear_bytes_before)} → {size(sums.linear_bytes_after)}"
    before = sums.file_bytes_before
    ratio = f"{percent(sums.file_bytes_after / before, 1)} of the source; " if before else ""
    legal = legal_share(report)
    tiles = [
        *(_tile(figure.name, figure.value, escaped(figure.about)) for figure in figures(report)),
        _perplexity(report),
        _tile("Weight files", files, ratio + linears, " wide"),
        _tile("Zeros in the linears", percent(zero_share(report)), f"{sums.zeros:,} of {sums.weights:,} weights"),
        *(
            []
            if legal is None
            else [_tile("Blocks that already had two zeros", percent(legal), "pruning did not change them")]
        ),
    ]
    found = {name: (count, parse_pattern(name)) for name, count in patterns(report).items()}
    used = {name: (count, pattern.ideal_speedup) for name, (count, pattern) in found.items() if pattern.ideal_speedup}
    grouped = [name for name in found if name not in used]
    if grouped:
        title = "Group pattern" if len(grouped) == 1 else "Group patterns"
        tiles.append(_tile(title, " + ".join(grouped), "group size and share of pruned groups"))
    if used:
        each = [
            f"{gain:.2f}&times;" + (f" ({count:,} linears)" if len(used) > 1 else "") for count, gain in used.values()
        ]
        title = "Pattern" if len(used) == 1 else "Patterns"
        tiles.append(_tile(title, " + ".join(used), f"ideal speed-up, not measured: {' + '.join(each)}"))
    return f'<section class="tiles" aria-label="Key figures">\n{"".join(tiles)}</section>\n'


def _perplexity(report: Report) -> str:
    values = report.perplexity
    if not values:
        return ""
    told = perplexities(report)
    numbers = [told[key] for key in ("source", "output") if key in told]
    sides = [side for key, side in (("source", "before"), ("output", "after")) if key in values]
    both = len(numbers) == 2 and values["source"] > 0
    title, ratio = f"Perplexity {' → '.join(sides)}", perplexity_ratio(report)
    change = f"{100 * (values['output'] / values['source'] - 1):+.1f}%" if both else ""
    protocol = f"on {report.perplexity_protocol}" if report.perplexity_protocol else ""
    about = ", ".join(part for part in (change, f"ratio {ratio}" if ratio else "", protocol) if part)
    others = [_tile(figure.name, figure.value, escaped(figure.about)) for figure in compared(report)]
    return _tile(title, " → ".join(numbers), escaped(about), " full") + "".join(others)


def _tile(title: str, value: str, detail: str, extra: str = "") -> str:
    """One key figure. `detail` is markup; `title` and `value` are plain text. extra: more CSS classes."""
    return (
        f'<div class="tile{extra}"><h2>{escaped(title)}</h2><div class="value">{escaped(value)}</div>'
        f'<p class="soft">{detail}</p></div>\n'
    )
