"""The tables of docs/gpus.md and docs/families.md are those that the package's own tables make."""

from __future__ import annotations

import csv

import pytest

from slideconvert.allocate import gpus
from slideconvert.models.families import FAMILIES
from tests.helpers.doc_tables import BEGIN, DOCS, END, MODEL, TABLES, rendered
from tests.helpers.family_models import CASES


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_documents_are_up_to_date(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == rendered(text, TABLES[name]()), "run `python -m tests.helpers.doc_tables`"


def test_every_family_and_every_gpu_has_its_row() -> None:
    families, shown = (DOCS / "families.md").read_text(), (DOCS / "gpus.md").read_text()
    assert [name for name in (*FAMILIES, *CASES) if f"| `{name}` |" not in families] == []
    assert [name for name in gpus.BUNDLED if f"| `{name}` |" not in shown] == []


def test_times_in_documents_are_those_of_the_files() -> None:
    """Read without the package's parser."""
    shown = (DOCS / "gpus.md").read_text().replace(" †", "")
    checked = 0
    for file in dict.fromkeys(gpus.BUNDLED.values()):
        lines = (DOCS.parent / "slideconvert" / "allocate" / file).read_text().splitlines()
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            if row["model"] == MODEL and row["tokens"] in ("1", "64", "1024", "16384"):
                gains = " | ".join(f"{float(row[pattern]):.2f}" for pattern in ("2:4", "2:6", "2:8", "2:10"))
                assert f"| `{row['gpu']}` | {row['scheme']} | {int(row['tokens']):,} | {gains} |\n" in shown
                checked += 1
    assert checked == shown.count("\n| `") >= 3 * len(gpus.BUNDLED)
