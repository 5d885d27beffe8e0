"""The tables of a run as one small CSV file, to keep beside a document: a line for each number of tokens or load, and
what it was measured on as comments. benches/tables.py makes Markdown of such files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.staging import write_file, writing
from ..errors import InputError
from .results import Results
from .tables import BASELINES, Table, pattern_order

SUMMARY = "tables.csv"
WORDS = ("level", "model", "precision", "chosen", "axis")
"""Columns of what a table is of; `size` and the times follow, in microseconds to four digits."""
SIZE = "size"


@dataclass(frozen=True)
class Summary:
    """facts: the comments: the command, the machine, versions. tables: without the shapes of their linears."""

    facts: list[str]
    tables: list[Table]


def write_summary(results: Results, tables: Iterable[Table]) -> None:
    """tables.csv into the folder of the results. OutputError if that fails."""
    with writing(results.folder):
        write_file(results.folder / SUMMARY, summary_text(results, tables).encode())


def summary_text(results: Results, tables: Iterable[Table]) -> str:
    """The file: comments, a header, and a line for each size of each table."""
    some = list(tables)
    patterns = pattern_order({name for table in some for name in table.patterns})
    baselines = [name for name in BASELINES if any(name in table.baselines for table in some)]
    out = io.StringIO()
    out.write(f"# slideconvert bench {results.level}\n")
    for name, value in {**results.machine, **results.ceilings}.items():
        out.write(f"# {name}: {str(value).splitlines()[0] if value else value}\n")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([*WORDS, SIZE, *baselines, *patterns])
    for table in some:
        for size in table.tokens:
            times = [table.baselines.get(name, {}).get(size) for name in baselines]
            times += [table.patterns.get(name, {}).get(size) for name in patterns]
            cells = ["" if one is None else f"{digits(one):.10g}" for one in times]
            lines.writerow([*(getattr(table, word) for word in WORDS), f"{size:g}", *cells])
    return out.getvalue()


def digits(value: float) -> float:
    """Rounded to four digits."""
    return float(f"{value:.4g}")


def read_summary(path: Path) -> Summary:
    """The inverse of `write_summary`. InputError for a file that is not such a table."""
    if not path.is_file():
        raise InputError(f"{path} is no file", hint=f"name the {SUMMARY} of a run of slideconvert bench")
    lines = path.read_text().splitlines()
    facts = [line[1:].strip() for line in lines if line.startswith("#")]
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    columns = list(rows.fieldnames or [])
    if columns[: len(WORDS) + 1] != [*WORDS, SIZE]:
        raise InputError(f"{path} has other columns: {', '.join(columns)}", hint=f"name a {SUMMARY} of this version")
    found: dict[tuple[str, ...], dict[str, dict[float, float]]] = {}
    for number, row in enumerate(rows, 1):
        times = found.setdefault(tuple(row[word] for word in WORDS), {})
        try:
            for name in columns[len(WORDS) + 1 :]:
                if row[name]:
                    times.setdefault(name, {})[float(row[SIZE])] = float(row[name])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: line {number} of the table is damaged: {error}", hint="copy it again") from error
    return Summary(facts, [_table(words, times) for words, times in found.items()])


def _table(words: tuple[str, ...], times: dict[str, dict[float, float]]) -> Table:
    level, model, precision, chosen, axis = words
    baselines = {name: by for name, by in times.items() if name in BASELINES}
    patterns = {name: by for name, by in times.items() if name not in BASELINES}
    return Table(level, model, precision, chosen, {}, baselines, patterns, axis)
