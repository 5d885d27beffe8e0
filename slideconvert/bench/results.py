"""What was measured, kept as JSON while it grows and as CSV beside it: a run that ends early goes on from there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from ..checkpoint.reader import read_json
from ..checkpoint.staging import write_file, writing
from ..errors import InputError
from . import case
from .case import KERNEL, LAYER
from .serving import rows as served

SERVE = "serve"
"""The level of results of servers."""
AnyCase = case.Case | served.ServeCase
AnyRow = case.Row | served.ServeRow
KINDS: dict[str, tuple[type[AnyRow], tuple[str, ...]]] = {
    KERNEL: (case.Row, case.COLUMNS),
    LAYER: (case.Row, case.COLUMNS),
    SERVE: (served.ServeRow, served.COLUMNS),
}
"""By level, the rows of its results, and the columns of their table."""
SCHEMA = 1
"""Of the JSON; a reader that does not know it refuses the file."""
FILE, TABLE = "results.json", "results.csv"
SAVE_SECONDS = 2.0
"""Between two writes of a file that grows."""


@dataclass
class Results:
    """The rows of a folder by the keys of their cases, and the machine that they were measured on.

    ceilings: what that can at most, measured: COPY, bytes per second that a large copy reads and writes.
    """

    folder: Path
    level: str
    machine: dict[str, Any]
    rows: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    now: Callable[[], float] = monotonic
    saved: float = 0.0

    def has(self, case: AnyCase, version: str) -> bool:
        """Whether this version of the case was measured. What failed is tried again."""
        row = self.rows.get(case.key)
        return row is not None and row.measured and row.version == version

    def add(self, row: AnyRow) -> None:
        """Keep a row; the files are written every few seconds."""
        self.rows[row.case.key] = row
        if self.now() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write both files, each whole or not at all. OutputError if that fails."""
        rows = [row.flat() for row in self.rows.values()]
        told = {"schema": SCHEMA, "level": self.level, "machine": self.machine, "ceilings": self.ceilings, "rows": rows}
        with writing(self.folder, after_full="free disk space and run it again: what is there is not measured again"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.folder / FILE, (json.dumps(told, indent=1) + "\n").encode())
            write_file(self.folder / TABLE, csv_text(KINDS[self.level][1], self.rows.values()).encode())
        self.saved = self.now()


def csv_text(columns: Iterable[str], rows: Iterable[AnyRow]) -> str:
    """Rows as CSV under a header of these columns; numbers to four digits."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in row.flat().values()])
    return out.getvalue()


def open_results(folder: Path, level: str, machine: dict[str, Any]) -> Results:
    """The results of a folder to go on with, or new ones. InputError if those there are of another level or machine."""
    if not (folder / FILE).exists():
        return Results(folder, level, machine)
    found = read_results(folder)
    if found.level != level:
        different = f"they are of bench {found.level}"
    else:
        names = [name for name in {**found.machine, **machine} if found.machine.get(name) != machine.get(name)]
        different = ", ".join(f"{name} was {found.machine.get(name)}, is {machine.get(name)}" for name in names)
    if different:
        raise InputError(
            f"{folder / FILE} has other results: {different}", hint="give another folder with --out, or remove it"
        )
    return found


def read_results(path: Path) -> Results:
    """The results of a folder, or of a JSON file. InputError if there are none, or if they are damaged."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path} has no results", hint="name a folder that slideconvert bench wrote")
    told = read_json(file)
    if told.get("schema") != SCHEMA:
        raise InputError(f"{file} has schema {told.get('schema')!r}, this version reads {SCHEMA}", hint="measure again")
    try:
        level, machine, ceilings = told["level"], dict(told["machine"]), dict(told["ceilings"])
        kind, _ = KINDS[level]
        rows = [kind.of(one) for one in told["rows"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {type(error).__name__} {error}", hint="measure again") from error
    return Results(file.parent, level, machine, {row.case.key: row for row in rows}, ceilings)
