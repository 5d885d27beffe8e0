"""Tables of measured times: CSV files, their columns and their parser.

Lines that start with # describe the source of a table; those that begin with a GPU's name, its rows alone. The header
line follows, then a row for each measurement:

    gpu,scheme,model,linears,tokens,dense,2:4,2:8
    h100,int8,Qwen2.5-7B,4608x3584+3584x3584+37888x3584+3584x18944,4096,2380,1.70,1.15

linears are the matrices that a server runs in a decoder layer, out x in, with q/k/v and gate/up fused; or a single one.
dense is their total time, in any unit that is the same in all rows; 2:L is the speed-up of the pattern, empty if
unknown. A table has rows of layers or of single linears, not both. A comment that begins with SERVED says that dense
linears are those of a server; otherwise no speed-up counts beyond the bound of its pattern.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.patterns import ALL, BlockPattern, Pattern
from ..core.schemes import SCHEMES
from ..errors import InputError, pick

COLUMNS = ("gpu", "scheme", "model", "linears", "tokens", "dense")
"""The columns before those of the patterns."""
SERVED = "baseline: a server's own dense linears"
"""The beginning of the comment of a table whose speed-ups are over what a server would run instead."""
PATTERNS = [str(pattern) for pattern in ALL]
SCHEME_NAMES = [scheme.name for scheme in SCHEMES.values() if scheme.quantized]
FORMAT = f"{','.join(COLUMNS)}, then one column for each measured pattern of {', '.join(PATTERNS)}"

NUMBER = "[1-9][0-9]{0,8}"
LINE = 4096
"""Characters of a line, at most."""

Shape = tuple[int, int]
"""out x in."""


@dataclass(frozen=True)
class Row:
    """A measurement of these linears together at a number of tokens: dense time, and speed-up over it by pattern."""

    gpu: str
    scheme: str
    model: str
    linears: tuple[Shape, ...]
    tokens: int
    dense: float
    speedups: Mapping[Pattern, float]


def read_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """The comments and the rows of a table. InputError with the line for anything invalid."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"table of times {path}: {reason}", hint=f"a CSV file with the columns {FORMAT}") from error
    source = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    data = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if len(data) < 2:
        raise InputError(f"{path}: no times", hint=f"a CSV file with the columns {FORMAT}")
    columns = _columns(data[0][1], f"{path}, line {data[0][0]}")
    rows: dict[tuple[object, ...], Row] = {}
    for number, line in data[1:]:
        where = f"{path}, line {number}"
        row = _parse_row(_cells(line, where), columns, where)
        key = (row.gpu, row.scheme, row.linears, row.tokens)
        if key in rows:
            raise InputError(f"{where}: the same GPU, scheme, linears and tokens again", hint="leave one row of each")
        rows[key] = row
        first = next(iter(rows.values()))
        if (len(row.linears) > 1) != (len(first.linears) > 1):
            raise InputError(f"{where}: rows of layers and of single linears", hint="a table has one or the other")
    return source, list(rows.values())


def _cells(line: str, where: str) -> list[str]:
    """The values of a line. InputError for a line that is too long for a table of times, or no CSV."""
    if len(line) > LINE:  # far below the limit of Python's csv module for a field
        raise InputError(f"{where}: {len(line):,} characters, of at most {LINE:,}", hint=f"the columns are {FORMAT}")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise InputError(
            f"{where}: not CSV ({error})", hint=f"the columns are {FORMAT}, one row in each line"
        ) from error


def _columns(line: str, where: str) -> list[str]:
    found = [name.strip() for name in _cells(line, where)]
    if tuple(found[: len(COLUMNS)]) != COLUMNS or not found[len(COLUMNS) :]:
        raise InputError(f"{where}: the columns are {','.join(found)}", hint=f"they must be {FORMAT}")
    for name in found[len(COLUMNS) :]:
        pick(name, PATTERNS, f"pattern in {where}:")
    if len(set(found)) < len(found):
        raise InputError(f"{where}: a column stands there twice")
    return found


def _parse_row(cells: list[str], columns: list[str], where: str) -> Row:
    if len(cells) != len(columns):
        raise InputError(f"{where}: {len(cells)} values for {len(columns)} columns")
    fields = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    pick(fields["scheme"], SCHEME_NAMES, f"scheme in {where}:")
    for name in ("gpu", "model"):
        if not fields[name]:
            raise InputError(f"{where}: {name} is empty")
    if not re.fullmatch(rf"{NUMBER}x{NUMBER}(\+{NUMBER}x{NUMBER})*", fields["linears"]):
        raise InputError(f"{where}: linears is '{fields['linears']}'", hint="out x in of each, as 3072x2048+2048x2048")
    shapes = [tuple(map(int, shape.split("x"))) for shape in fields["linears"].split("+")]
    if not re.fullmatch(NUMBER, fields["tokens"]):
        raise InputError(f"{where}: tokens is '{fields['tokens']}', a whole number from 1 to 999,999,999 was expected")
    patterns = [name for name in columns[len(COLUMNS) :] if fields[name]]
    return Row(
        gpu=fields["gpu"],
        scheme=fields["scheme"],
        model=fields["model"],
        linears=tuple((outer, inner) for outer, inner in shapes),
        tokens=int(fields["tokens"]),
        dense=_positive(fields["dense"], "dense", where),
        speedups={BlockPattern.parse(name): _positive(fields[name], name, where) for name in patterns},
    )


def _positive(cell: str, column: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{where}: {column} is '{cell}', a number above 0 was expected")
    return value
