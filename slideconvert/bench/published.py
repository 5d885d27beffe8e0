"""A run beside the table that SlideSparse published for the GPU of the same architecture: theirs, ours, and why they
differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..allocate.gpus import PUBLISHED
from ..allocate.rows import Row
from ..allocate.speed import SpeedTable
from ..errors import InputError, pick
from .case import DENSE, KERNEL
from .results import SERVE, Results
from .tables import BEST, Table, ideal, pattern_order, tables

ARCHITECTURES = {"8.0": "a100", "8.9": "rtx4090", "9.0": "h100", "10.0": "b200", "12.0": "rtx5080", "12.1": "gb10"}
"""By compute capability, the GPU whose published times are set beside those of a run."""
LIBRARY = "torch"
"""Our baseline that is the published one: torch's dense product is cuBLASLt's."""


@dataclass(frozen=True)
class Line:
    """One model, number of tokens and pattern. Microseconds of all linears of a layer, None for what one side lacks.

    theirs_dense: cuBLASLt. ours_dense: torch's dense product, or the fastest dense way where that was not measured.
    note: why a side is missing, or what is odd about theirs.
    """

    model: str
    tokens: int
    pattern: str
    theirs_dense: float | None
    theirs: float | None
    ours_dense: float | None
    ours: float | None
    note: str = ""

    @property
    def theirs_speedup(self) -> float | None:
        return _over(self.theirs_dense, self.theirs)

    @property
    def ours_speedup(self) -> float | None:
        return _over(self.ours_dense, self.ours)

    @property
    def dense_ratio(self) -> float | None:
        """As `ratio`, of the dense products."""
        return _over(self.theirs_dense, self.ours_dense)

    @property
    def ratio(self) -> float | None:
        """Their time over ours: above 1, ours is faster."""
        return _over(self.theirs, self.ours)


@dataclass(frozen=True)
class Beside:
    """gpu: the published one. device: ours. baseline: what our speed-ups are over. notes: why the two differ."""

    gpu: str
    device: str
    baseline: str
    lines: list[Line]
    notes: list[str]

    @property
    def models(self) -> list[str]:
        """In order of the results."""
        return list(dict.fromkeys(line.model for line in self.lines))

    def of(self, model: str) -> dict[int, dict[str, Line]]:
        """The lines of a model by tokens and pattern."""
        found: dict[int, dict[str, Line]] = {}
        for line in self.lines:
            if line.model == model:
                found.setdefault(line.tokens, {})[line.pattern] = line
        return found

    def to_json(self) -> dict[str, Any]:
        """What `bench compare RUN published --json` prints."""
        lines = [
            {
                **asdict(line),
                "theirs_speedup": line.theirs_speedup,
                "ours_speedup": line.ours_speedup,
                "dense_ratio": line.dense_ratio,
                "ratio": line.ratio,
            }
            for line in self.lines
        ]
        words = {"gpu": self.gpu, "device": self.device, "baseline": self.baseline, "notes": self.notes}
        return {**words, "lines": lines}


def family(results: Results) -> str | None:
    """The published GPU of the architecture that the results were measured on; None if there is none."""
    return ARCHITECTURES.get(str(results.machine.get("compute_capability")))


def beside(results: Results, gpu: str | None = None) -> Beside:
    """Results of products or linears beside the published table. gpu: other than that of the same architecture.

    InputError for results of servers, for a device that no published GPU resembles, and where no model, precision and
    number of tokens is in both.
    """
    if results.level == SERVE:
        raise InputError(
            f"{results.folder} is of bench serve, the published table of products", hint="give results of bench kernel"
        )
    name = pick(gpu.lower(), PUBLISHED, "published GPU") if gpu else family(results)
    if name is None:
        raise InputError(
            f"{results.machine['device']}: the published table has no GPU of its architecture",
            hint=f"name one of {', '.join(PUBLISHED)}: published:h100",
        )
    found = in_common(results, name)
    if found is None:
        known = ", ".join(dict.fromkeys(row.model for row in SpeedTable.load(name).rows))
        raise InputError(
            f"{results.folder} has nothing that was published for {name}",
            hint=f"measure int8 linears of {known} for 64 to 16384 tokens",
        )
    return found


def in_common(results: Results, gpu: str) -> Beside | None:
    """Results of products or linears beside what was published for this GPU; None if they have nothing in common."""
    table = SpeedTable.load(gpu)
    pairs = list(_pairs(results, table))
    lines = [line for own, rows in pairs for line in _lines(own, rows, results)]
    if not lines:
        return None
    baseline = LIBRARY if all(LIBRARY in own.baselines for own, _ in pairs) else DENSE
    return Beside(gpu, str(results.machine["device"]), baseline, lines, _notes(results, table, lines, baseline))


def _over(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None


def _pairs(results: Results, table: SpeedTable) -> Iterator[tuple[Table, dict[int, Row]]]:
    """Tables of the fastest way, and what was published of linears of these shapes, by tokens."""
    for own in tables(results.rows.values()):
        shapes = sorted(own.shapes.values())
        rows = [row for row in table.rows if sorted(row.linears) == shapes and row.scheme == own.precision]
        if own.chosen == BEST and rows:
            yield own, {row.tokens: row for row in rows}


def _lines(own: Table, rows: dict[int, Row], results: Results) -> Iterator[Line]:
    baseline = own.baselines.get(LIBRARY) or own.baselines.get(DENSE, {})
    asked = pattern_order({one.case.pattern for one in results.rows.values() if one.case.model == own.model} - {DENSE})
    for tokens, row in rows.items():
        if tokens not in own.tokens:
            continue
        theirs = {str(pattern): row.dense / speedup for pattern, speedup in row.speedups.items()}
        for pattern in asked:
            ours = own.patterns.get(pattern, {}).get(tokens)
            line = Line(own.model, tokens, pattern, row.dense, theirs.get(pattern), baseline.get(tokens), ours)
            yield replace(line, note=_note(line, own, results))


def _note(line: Line, own: Table, results: Results) -> str:
    """Why a side is missing, or that theirs exceeds what the pattern can gain."""
    if line.theirs is None:
        return "not published"
    if line.ours is None:
        failures = (
            row.failure
            for row in results.rows.values()
            if (row.case.model, row.case.precision) == (own.model, own.precision)
            and (row.case.pattern, row.case.tokens) == (line.pattern, line.tokens)
            and row.failure
        )
        return next((f"ours failed: {failure}" for failure in failures), "ours was not measured")
    most = ideal(line.pattern)
    return "above the bound" if most and line.theirs_speedup and line.theirs_speedup > most else ""


def _notes(results: Results, table: SpeedTable, lines: list[Line], baseline: str) -> list[str]:
    """Why theirs and ours differ, as sentences."""
    own = {LIBRARY: "torch's dense product (cuBLASLt, and a kernel for the scales)", DENSE: "our fastest dense way"}
    notes = [
        f"theirs: {table.gpu}, cuSPARSELt over cuBLASLt, products without scales; {table.source[0]}",
        f"ours: {results.machine['device']}, the fastest way of each linear over {own[baseline]}",
    ]
    if results.level != KERNEL:
        notes.append("ours is of bench layer, which counts quantizing, lifting and scaling; theirs counts none of it")
    odd = sum(line.note == "above the bound" for line in lines)
    if odd:
        notes.append(
            f"{odd} of {len(lines)} published speed-ups exceed L / (L - 2), so that their dense product did not run at "
            "the speed of the GPU: compare times, not speed-ups"
        )
    for missing in ("not published", "ours was not measured"):
        if count := sum(line.note == missing for line in lines):
            notes.append(f"{count} of {len(lines)}: {missing}")
    notes += list(dict.fromkeys(line.note for line in lines if line.note.startswith("ours failed")))
    return notes + [line for line in table.source if line.startswith(table.gpu)]
