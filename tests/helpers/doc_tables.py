"""Writes the tables of docs/gpus.md and docs/families.md, each between two comments:

    python -m tests.helpers.doc_tables

Times are those of the tables that the package contains, families those of its registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from slideconvert.allocate.gpus import BUNDLED
from slideconvert.allocate.rows import Row
from slideconvert.allocate.speed import SpeedTable
from slideconvert.core.patterns import Pattern
from slideconvert.core.patterns.blocks import BlockPattern
from slideconvert.gguf_files.model import ARCHITECTURES
from slideconvert.models.architecture import Architecture
from slideconvert.models.families import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODEL = "Qwen2.5-7B"
TOKENS = (1, 64, 1024, 16384)
PATTERNS = tuple(BlockPattern(length) for length in (4, 6, 8, 10))
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows)).replace(" --- ", "---")


def gpu_rows() -> Iterator[list[str]]:
    """One row for each GPU, scheme and number of tokens. A dagger marks speed-ups beyond the pattern's bound."""
    for gpu in BUNDLED:
        found = {(row.scheme, row.tokens): row for row in SpeedTable.load(gpu).rows if row.model == MODEL}
        for scheme, tokens in found:
            if tokens in TOKENS:
                gains = [cell(found[scheme, tokens], pattern) for pattern in PATTERNS]
                yield [f"`{gpu}`", scheme, f"{tokens:,}", *gains]


def cell(row: Row, pattern: Pattern) -> str:
    gain = row.speedups.get(pattern)
    return "–" if gain is None else f"{gain:.2f}{' †' * (gain > pattern.ideal_speedup)}"


def gpus() -> str:
    head = ["GPU", "scheme", "tokens", *map(str, PATTERNS)]
    return markdown(head, [["*bound*", "", "", *(f"{pattern.ideal_speedup:.2f}" for pattern in PATTERNS)], *gpu_rows()])


def fused(groups: Iterable[Sequence[str]]) -> str:
    """Linears by their shared input: 'q k v, o'."""
    names = [[name.rpartition(".")[2].removesuffix("_proj") for name in group] for group in groups]
    return ", ".join(" ".join(group) for group in names)


def permuted(family: Architecture) -> str:
    found = [name for name, channels in (("value heads", family.heads), ("MLP", family.inner)) if channels]
    return ", ".join(found) or "none"


def rotated(family: Architecture) -> str:
    if family.heads is None or family.heads.norm:
        return "no"
    return "residual stream, value heads" if family.residual_norms else "value heads"


def families() -> str:
    head = ["`model_type`", "attention", "MLP", "`quality` permutes", "`rotate`", "head tied by default", "GGUF"]
    rows = [
        [
            f"`{name}`",
            fused(family.attention),
            fused(family.mlp),
            permuted(family),
            rotated(family),
            "yes" if family.tied else "no",
            "yes" if name in ARCHITECTURES else "no",
        ]
        for name, family in FAMILIES.items()
    ]
    return markdown(head, rows)


TABLES: dict[str, Callable[[], str]] = {"gpus.md": gpus, "families.md": families}


def rendered(text: str, table: str) -> str:
    """A page with the table between its comments."""
    return re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: table, text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    for name, make in TABLES.items():
        page = DOCS / name
        page.write_text(rendered(page.read_text(), make()))
