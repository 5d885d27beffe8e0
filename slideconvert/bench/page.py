"""Results as one HTML page without anything from elsewhere: heat maps, curves, rooflines, and tables that sort.

The content security policy allows the one script below, by its hash, and no request.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..checkpoint.staging import write_file, writing
from ..report.page import NUMBER, escaped, whole_page
from ..report.svg import MARKERS, drawn, line_key, standalone
from .case import KERNEL, LAYER
from .clock import COPY
from .figures import Figure, figures
from .png import png_of
from .published import Beside, family, in_common
from .results import KINDS, SERVE, Results
from .tables import BEST, Table, ideal
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
.figure summary{font-size:13px;font-weight:500;margin-top:4px}
.figure h3{font-size:14px;margin:18px 0 0}.heat td,.heat tbody th{border-color:var(--card)}
.words details{white-space:normal;max-width:640px}.words summary{font:inherit;white-space:nowrap}
.facts{columns:2;margin:6px 0 0;padding-left:18px;font-size:13px}
@media (max-width:700px){.facts{columns:1}}
"""
UNSHOWN = ("level", "rows", "columns", "version")
"""Columns of the CSV that the table of all cases leaves out."""
LONG = 60
"""Letters of a text that its cell shows until it is opened."""
UNITS = {"us": "µs", "ms": "ms", "s": "s", "gib": "GiB"}
"""Of columns of the CSV, by the ends of their names; that of weights has no other name."""
NAMES_SHOWN = 3
"""Kinds of cases that are named where a failure has more of them."""
WAYS = {AUTO: "as the rule chooses", BEST: "the fastest way of each linear"}


def write_page(results: Results, tables: Iterable[Table], *, png: bool = False) -> None:
    """index.html, and its figures as SVG and PNG, into the folder of the results. OutputError if that fails, InputError
    if PNG is asked for and cannot be made here."""
    some = list(tables)
    made = figures(some, results.ceilings.get(COPY))
    with writing(results.folder):
        (results.folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for figure in (one for of_table in made for one in of_table):
            alone = standalone(figure.markup, title=figure.title, names=figure.series)
            write_file(results.folder / FIGURES / f"{figure.name}.svg", alone.encode())
            if png:
                write_file(results.folder / FIGURES / f"{figure.name}.png", png_of(alone))
        write_file(results.folder / PAGE, render(results, some, made).encode())


def render(results: Results, tables: list[Table], made: list[list[Figure]]) -> str:
    """The whole page. made: the figures of each table."""
    title = f"bench {results.level}: {results.machine['device']}"
    parts = [_head(results, title)]
    parts += [_table(table, own) for table, own in zip(tables, made, strict=True)]
    gpu = family(results) if results.level != SERVE else None
    found = in_common(results, gpu) if gpu else None
    if found:
        parts += [_published(found, model) for model in found.models]
    parts += [_failures(results), _rows(results)]
    return whole_page(title, "".join(parts), style=OWN_STYLE, script=SCRIPT)


ABOUT = {
    KERNEL: "Products alone, of activations that are already quantized. Each output is checked against float64 first.",
    LAYER: "Whole linears, bfloat16 in and out. Each output is checked against float64 first.",
    SERVE: "vLLM, in a process of its own for each checkpoint.",
}


def _head(results: Results, title: str) -> str:
    measured = sum(row.measured for row in results.rows.values())
    facts = "".join(f"<li>{escaped(_fact(name, value))}</li>" for name, value in results.machine.items())
    return (
        f'<header><h1>{escaped(title)}</h1>\n<p class="soft">{ABOUT[results.level]} '
        f'{measured:,} of {len(results.rows):,} cases were measured.</p>\n<ul class="facts">{facts}</ul></header>\n'
    )


def _fact(name: str, value: object) -> str:
    """A fact about the machine in words, with its unit."""
    if name == "gpu_memory" and isinstance(value, int):
        return f"GPU memory: {value / 2**30:.1f} GiB"
    if name == "power_limit_watts":
        return f"power limit: {value} W"
    if name in ("prompt", "output"):
        return f"{name}: {value} tokens"
    return f"{name.replace('_', ' ')}: {value}"


def _table(table: Table, made: list[Figure]) -> str:
    words = [table.model, table.precision, table.chosen, table.axis if table.level == SERVE else ""]
    about = f"Speed-up over {escaped(table.over())}, by {escaped(table.axis)}."
    if table.shapes:
        linears = ", ".join(f"{escaped(name)} {rows} × {columns}" for name, (rows, columns) in table.shapes.items())
        about = f"Sum of {linears}; {WAYS[table.chosen]}. {about}"
    first, *others = [table.baseline, *(name for name in table.baselines if name != table.baseline)]
    more = "".join(
        f"<details><summary>Over {table.over(name)}</summary>{_heat(table, name)}</details>" for name in others
    )
    plots = "".join(
        f'<h3>{escaped(figure.title)}</h3><p class="soft">{escaped(figure.about)}</p>'
        + drawn(_keys(figure), figure.markup)
        for figure in made
    )
    return (
        f'<section class="box figure"><h2>{escaped(", ".join(filter(None, words)))}</h2><p class="soft">{about}</p>'
        f"{_heat(table, first)}{more}{plots}</section>\n"
    )


def _keys(figure: Figure) -> str:
    return "".join(line_key(place % len(MARKERS), name) for place, name in enumerate(figure.series))


def _heat(table: Table, baseline: str) -> str:
    """Patterns by tokens: green above 1, red below."""
    heads = "".join(f'<th scope="col">{tokens:,g}</th>' for tokens in table.tokens)
    times = table.baselines.get(baseline, {})
    base = "".join(
        f'<td class="none">{times[tokens]:,.1f}</td>' if tokens in times else '<td class="none">–</td>'
        for tokens in table.tokens
    )
    lines = [f'<tr><th scope="row">{escaped(baseline)}, {table.unit}</th><td class="none"></td>{base}</tr>']
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
        count = "1 case" if len(cases) == 1 else f"{len(cases):,} cases"
        items.append(f"<li>{escaped(why)}<br>{count}: {escaped(', '.join(names[:NAMES_SHOWN]))}{more}</li>")
    return f'<section class="notes"><h2>Not measured</h2><ul>{"".join(items)}</ul></section>\n'


def _rows(results: Results) -> str:
    """Every case, in columns that have a value in any of them."""
    flat = [row.flat() for row in results.rows.values()]
    columns = [name for name in KINDS[results.level][1] if name not in UNSHOWN]
    shown = [name for name in columns if any(one[name] not in (None, "") for one in flat)]
    numbers = {name for name in shown if any(isinstance(one[name], float) for one in flat)}
    heads = "".join(f'<th scope="col"{NUMBER * (name in numbers)}>{_head_of(name)}</th>' for name in shown)
    lines = ["<tr>" + "".join(_plain(one[name]) for name in shown) + "</tr>\n" for one in flat]
    return (
        f'<details class="box"><summary>All cases ({len(lines):,})</summary><div class="table">'
        f'<table class="sorts"><thead>'
        f"<tr>{heads}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div></details>\n"
    )


def _head_of(column: str) -> str:
    """A column of the CSV in words, as markup: low_us -> low, µs."""
    name, _, unit = column.rpartition("_")
    if unit not in UNITS:
        return column.replace("_", " ")
    return f"{name.replace('_', ' ') or 'weights'},&nbsp;{UNITS[unit]}"


def _plain(value: object) -> str:
    if value is None:
        return f"<td{NUMBER}>–</td>"
    if isinstance(value, float):
        return f'<td{NUMBER} data-v="{value:.6g}">{format(value, ",.0f" if abs(value) >= 1000 else ".4g")}</td>'
    text = str(value)
    if len(text) > LONG:
        return f'<td class="words"><details><summary>{escaped(text[:LONG])}…</summary>{escaped(text)}</details></td>'
    return f"<td>{escaped(text)}</td>"
