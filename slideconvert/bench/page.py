"""Results as one HTML page without anything from elsewhere: heat maps, curves, rooflines, and tables that sort.

The content security policy allows the one script below, by its hash, and no request.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint.staging import write_file, writing
from ..report.page import escaped, whole_page
from ..report.svg import standalone
from .case import KERNEL, LAYER
from .clock import COPY
from .figures import Figure, figures
from .png import png_of
from .published import Beside, family, in_common
from .results import KINDS, SERVE, Results
from .tables import BASELINES, BEST, Table, ideal
from .ways import AUTO

PAGE, FIGURES = "index.html", "figures"
SCRIPT = """
document.querySelectorAll("table.sorts th").forEach(function(head){head.tabIndex=0;function sort(){
var place=head.cellIndex,body=head.closest("table").tBodies[0],down=head.getAttribute("aria-sort")==="ascending";
head.parentNode.querySelectorAll("th").forEach(function(other){other.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",down?"descending":"ascending");
function key(row){var text=row.cells[place].dataset.v||row.cells[place].textContent,number=parseFloat(text);
return isNaN(number)?text:number}
Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b),order=typeof x===typeof y?(x<y?-1:x>y?1:0):
typeof x==="number"?-1:1;return down?-order:order}).forEach(function(row){body.appendChild(row)})}
head.addEventListener("click",sort);head.addEventListener("keydown",function(event){if(event.key==="Enter")sort()})});
"""
OWN_STYLE = """
.heat td,.heat th{text-align:center;padding:5px 7px}.heat tbody th{text-align:left;font-weight:600}
.heat td{font-variant-numeric:tabular-nums;color:#17202c}.heat .none{color:var(--soft)}
.sorts th{cursor:pointer}.sorts th[aria-sort=ascending]::after{content:" ▲"}
.sorts th[aria-sort=descending]::after{content:" ▼"}
.figure .table{overflow-x:auto}.figure summary{font-size:13px;font-weight:500;margin-top:4px}
.figure h3{font-size:14px;margin:18px 0 0}.figure td{border-color:var(--card)}
.facts{columns:2;margin:6px 0 0;padding-left:18px;font-size:13px}
@media (max-width:700px){.facts{columns:1}}
"""
UNSHOWN = ("level", "rows", "columns", "version")
"""Columns of the CSV that the table of all cases leaves out."""
NAMES_SHOWN = 3
"""Kinds of cases that are named where a failure has more of them."""
WAYS = {AUTO: "as the rule chooses", BEST: "the fastest way of each linear"}


def write_page(results: Results, tables: Iterable[Table], *, png: bool = False) -> None:
    """index.html, and its figures as SVG and PNG, into the folder of the results. OutputError if that fails, InputError
    if PNG is asked for and cannot be made here."""
    some = list(tables)
    drawn = figures(some, results.ceilings.get(COPY))
    with writing(results.folder):
        (results.folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for figure in (one for of_table in drawn for one in of_table):
            alone = standalone(figure.markup, title=figure.title)
            write_file(results.folder / FIGURES / f"{figure.name}.svg", alone.encode())
            if png:
                write_file(results.folder / FIGURES / f"{figure.name}.png", png_of(alone))
        write_file(results.folder / PAGE, render(results, some, drawn).encode())


def render(results: Results, tables: list[Table], drawn: list[list[Figure]]) -> str:
    """The whole page. drawn: the figures of each table."""
    title = f"bench {results.level}: {results.machine['device']}"
    parts = [_head(results, title)]
    parts += [_table(table, own) for table, own in zip(tables, drawn, strict=True)]
    gpu = family(results) if results.level != SERVE else None
    found = in_common(results, gpu) if gpu else None
    if found:
        parts += [_published(found, model) for model in found.models]
    parts += [_failures(results), _rows(results)]
    return whole_page(title, "".join(parts), style=OWN_STYLE, script=SCRIPT)


ABOUT = {
    KERNEL: "Products alone, of activations that are quantized already. Each output is compared with float64 before.",
    LAYER: "Whole linears, bfloat16 in and out. Each output is compared with float64 before.",
    SERVE: "vLLM, in a process of its own for each checkpoint.",
}


def _head(results: Results, title: str) -> str:
    measured = sum(row.measured for row in results.rows.values())
    facts = "".join(
        f"<li>{escaped(name.replace('_', ' '))}: {escaped(value)}</li>" for name, value in results.machine.items()
    )
    return (
        f'<header><h1>{escaped(title)}</h1>\n<p class="soft">{ABOUT[results.level]} '
        f'{measured:,} of {len(results.rows):,} cases are measured.</p>\n<ul class="facts">{facts}</ul></header>\n'
    )


def _table(table: Table, drawn: list[Figure]) -> str:
    words = ", ".join(escaped(word) for word in (table.model, table.precision, table.chosen) if word)
    about = f"Speed-up over {BASELINES.get(table.baseline, table.baseline)}, by {escaped(table.axis)}."
    if table.shapes:
        linears = ", ".join(f"{escaped(name)} {rows} × {columns}" for name, (rows, columns) in table.shapes.items())
        about = f"Sum of {linears}; {WAYS[table.chosen]}. {about}"
    first, *others = [table.baseline, *(name for name in table.baselines if name != table.baseline)]
    more = "".join(
        f"<details><summary>Over {BASELINES[name]}</summary>{_heat(table, name)}</details>" for name in others
    )
    plots = "".join(
        f'<h3>{escaped(figure.title)}</h3><p class="soft">{escaped(figure.about)}</p>'
        f'<div class="scroll">{figure.markup}</div>'
        for figure in drawn
    )
    return (
        f'<section class="box figure"><h2>{words}</h2><p class="soft">{about}</p>'
        f"{_heat(table, first)}{more}{plots}</section>\n"
    )


def _heat(table: Table, baseline: str) -> str:
    """Patterns by tokens: green above 1, red below."""
    heads = "".join(f'<th scope="col">{tokens:,g}</th>' for tokens in table.tokens)
    times = table.baselines.get(baseline, {})
    base = "".join(
        f'<td class="none">{times[tokens]:,.1f}</td>' if tokens in times else '<td class="none">–</td>'
        for tokens in table.tokens
    )
    lines = [f'<tr><th scope="row">{escaped(baseline)}, µs</th><td class="none"></td>{base}</tr>']
    for pattern in table.patterns:
        cells = "".join(_cell(table.speedup(pattern, tokens, baseline)) for tokens in table.tokens)
        most = ideal(pattern)
        bound = "" if most is None else f"{most:.2f}"
        lines.append(f'<tr><th scope="row">{escaped(pattern)}</th><td class="none">{bound}</td>{cells}</tr>')
    return (
        f'<div class="table"><table class="heat"><thead><tr><th scope="col"></th><th scope="col">ideal</th>{heads}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(speedup: float | None, text: str = "") -> str:
    """Colored by a speed-up, which it shows unless told other text."""
    if speedup is None:
        return f'<td class="none">{text or "–"}</td>'
    share = min(1.0, abs(speedup - 1) / 0.6)
    hue = 145 if speedup >= 1 else 8
    color = f"hsl({hue} {20 + 50 * share:.0f}% {92 - 34 * share:.0f}%)"
    return f'<td style="background:{color}">{text or f"{speedup:.2f}"}</td>'


def _published(found: Beside, model: str) -> str:
    """Published and own speed-ups, green where our time is the shorter one."""
    lines = found.of(model)
    patterns = list(dict.fromkeys(pattern for of in lines.values() for pattern in of))
    heads = "".join(f'<th scope="col">{escaped(pattern)}</th>' for pattern in patterns)
    body = []
    for tokens, of in lines.items():
        dense = next(iter(of.values()))
        cells = [_cell(dense.dense_ratio, _both(dense.theirs_dense, dense.ours_dense, ",.0f"))]
        for one in (of.get(pattern) for pattern in patterns):
            cells.append(_cell(one.ratio, _both(one.theirs_speedup, one.ours_speedup, ".2f")) if one else _cell(None))
        body.append(f'<tr><th scope="row">{tokens:,}</th>{"".join(cells)}</tr>')
    notes = "".join(f"<li>{escaped(note)}</li>" for note in found.notes)
    return (
        f'<section class="box figure"><h2>{escaped(model)} beside the published {escaped(found.gpu)}</h2>'
        '<p class="soft">INT8, by tokens: speed-ups over the dense product, published and ours, and the microseconds '
        "of that. Green: our time is shorter than the published one.</p>"
        f'<div class="table"><table class="heat"><thead><tr><th scope="col"></th><th scope="col">dense, µs</th>{heads}'
        f'</tr></thead><tbody>{"".join(body)}</tbody></table></div><ul class="soft">{notes}</ul></section>\n'
    )


def _both(theirs: float | None, ours: float | None, form: str) -> str:
    return " · ".join("–" if one is None else format(one, form) for one in (theirs, ours))


def _failures(results: Results) -> str:
    failed: dict[str, list[str]] = {}
    for row in results.rows.values():
        if row.failure:
            failed.setdefault(row.failure, []).append(" ".join(word for word in row.label if word))
    if not failed:
        return ""
    items = []
    for why, cases in failed.items():
        names = list(dict.fromkeys(cases))
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        items.append(f"<li>{escaped(why)}<br>{len(cases)} cases: {escaped(', '.join(names[:NAMES_SHOWN]))}{more}</li>")
    return f'<section class="notes"><h2>Not measured</h2><ul>{"".join(items)}</ul></section>\n'


def _rows(results: Results) -> str:
    shown = [name for name in KINDS[results.level][1] if name not in UNSHOWN]
    heads = "".join(f'<th scope="col">{escaped(name.replace("_us", ", µs"))}</th>' for name in shown)
    lines = []
    for row in results.rows.values():
        flat = row.flat()
        lines.append("<tr>" + "".join(_plain(flat[name]) for name in shown) + "</tr>\n")
    return (
        f'<details class="box"><summary>All cases ({len(lines):,})</summary><div class="table">'
        f'<table class="sorts"><thead>'
        f"<tr>{heads}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div></details>\n"
    )


def _plain(value: object) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, float):
        return f'<td class="number" data-v="{value:.6g}">{value:,.4g}</td>'
    return f"<td>{escaped(value)}</td>"
