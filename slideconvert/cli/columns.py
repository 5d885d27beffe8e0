"""Tables that fit the terminal: names are shortened first, then the least important columns are left out.

No word is broken over two lines. A word that is still too wide after that shows its two ends.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table as Drawn

from ..errors import UNKNOWN

GAP = 2
"""Columns of the terminal between two columns of a table."""
LEAST = 6
"""Columns of the terminal that a word keeps of itself, at least."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    spare: 0 for one that is always shown; those with larger numbers are left out first.
    short: what stands for a cell where the table is too wide otherwise.
    number: whether its cells are numbers, which stand to the right and are never shortened.
    """

    name: str
    spare: int = 0
    short: Callable[[str], str] | None = None
    number: bool = False


@dataclass
class Table:
    """A title, columns, and rows of one cell a column."""

    title: str
    columns: list[Column]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)

    def fitted(self, width: int) -> tuple[Drawn, list[str]]:
        """The table as it is drawn in `width` columns of a terminal, without its title, and the names of the columns
        that are left out. Columns of numbers of which none is known are not shown, and not named."""
        cells = [_Cells(column, [row[at] for row in self.rows]) for at, column in enumerate(self.columns)]
        shown = [one for one in cells if not one.unknown]
        if _total(one.widest for one in shown) > width:
            shown = [one.shortened() for one in shown]
        left_out = []
        while _total(one.least for one in shown) > width and any(one.column.spare for one in shown):
            one = max(reversed(shown), key=lambda one: one.column.spare)
            shown.remove(one)
            left_out.append(one.column.name.strip())
        widths = _widths(shown, width)
        drawn = Drawn(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for one, columns in zip(shown, widths, strict=True):
            drawn.add_column(_cut(one.name, columns), justify=_side(one.column), width=columns)
        for row in zip(*(one.cells for one in shown), strict=True):
            drawn.add_row(*(_cut(cell, columns) for cell, columns in zip(row, widths, strict=True)))
        return drawn, list(dict.fromkeys(reversed(left_out)))


@dataclass(eq=False)
class _Cells:
    """The cells of a column, and what stands above them."""

    column: Column
    cells: list[str]
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.column.name

    def shortened(self) -> _Cells:
        short = self.column.short
        return replace(self, cells=[short(cell) for cell in self.cells], name=short(self.name)) if short else self

    @property
    def unknown(self) -> bool:
        return self.column.number and bool(self.cells) and all(cell == UNKNOWN for cell in self.cells)

    @property
    def widest(self) -> int:
        """Columns of the terminal in which no cell needs two lines."""
        return max(cell_len(text) for text in (self.name, *self.cells))

    @property
    def least(self) -> int:
        """Columns of the terminal in which no word is broken; numbers, which may have a unit, stay in one line."""
        words = [word for text in (self.name, *([] if self.column.number else self.cells)) for word in text.split()]
        return max(cell_len(text) for text in ("", *words, *(self.cells if self.column.number else [])))


def table(title: str, labels: Iterable[str | Column], numbers: Iterable[str | Column]) -> Table:
    """An empty table: columns of labels to the left, columns of numbers to the right."""
    left, right = (
        [one if isinstance(one, Column) else Column(one) for one in columns] for columns in (labels, numbers)
    )
    return Table(title, [*left, *(replace(one, number=True) for one in right)])


def linear_name(name: str) -> str:
    """The number of a linear's layer and its own name: model.layers.0.self_attn.q_proj -> 0.q_proj."""
    *path, own = name.split(".")
    return ".".join([*[part for part in path if part.isdecimal()], own])


def path_name(path: str) -> str:
    """The end of a path or Hub id: /home/me/models/out -> …/models/out."""
    *rest, folder, own = ["", "", *path.split("/")]
    return f"…/{folder}/{own}" if any(rest) else path


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` columns: broken between words, below the words behind a label (`source   out`). Words
    that are too wide, such as paths to be copied, keep a line of their own."""
    lines = []
    for line in text.split("\n"):
        label = re.match(r"\S* {2,}", line)
        indent = " " * (len(label[0]) if label and len(label[0]) <= width // 3 else 0)
        parts = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += parts or [""]
    return "\n".join(lines)


def _side(column: Column) -> Literal["left", "right"]:
    return "right" if column.number else "left"


def _total(widths: Iterable[int]) -> int:
    """The width of a table with columns of these widths."""
    found = list(widths)
    return 1 + sum(found) + GAP * len(found)


def _widths(shown: Sequence[_Cells], width: int) -> list[int]:
    """The widths of columns in a table of at most `width`: each as wide as its words at least, if that is possible."""
    found = [one.least for one in shown]
    while (short := _total(found) - width) > 0:  # words that are too wide: the widest of labels lose most
        labels = [at for at, one in enumerate(shown) if not one.column.number and found[at] > LEAST]
        if not labels:
            break
        most = max(labels, key=lambda at: found[at])
        others = max((found[at] for at in labels if found[at] < found[most]), default=LEAST)
        found[most] -= max(1, min(short, found[most] - others))
    for _ in range(width - _total(found)):
        most = max(range(len(shown)), key=lambda at: shown[at].widest - found[at])
        if found[most] < shown[most].widest:
            found[most] += 1
    return found


def _cut(text: str, width: int) -> str:
    """Text whose words are at most `width` wide: of wider ones the two ends remain."""
    if all(cell_len(word) <= width for word in text.split()):
        return text
    head = (width - 1) // 2
    return " ".join(
        word if cell_len(word) <= width else f"{word[:head]}…{word[len(word) - (width - 1 - head) :]}"
        for word in text.split()
    )
