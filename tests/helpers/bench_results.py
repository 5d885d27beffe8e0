"""Results of a GPU that is not there: times by a formula, so that what follows from them can be computed again."""

from __future__ import annotations

from pathlib import Path

from slideconvert.bench.case import DENSE, LAYER, Case, Row, Times
from slideconvert.bench.results import Results

LINEARS = {"qkv_proj": (4608, 3584), "o_proj": (3584, 3584), "gate_up_proj": (37888, 3584), "down_proj": (3584, 18944)}
TOKENS = (1, 16, 64, 1024, 16384)
PATTERNS = ("2:4", "2:6", "2:8", "2:inf")
WAYS = {"stock": 1.05, "dense": 1.0, "int_mm": 1.8, "many_sparse": 0.8, "few_sparse": 0.7, "auto": 0.75}
"""By way, the factor of its times; few_sparse runs up to 64 tokens."""


def seconds_of(rows: int, columns: int, tokens: int, pattern: str, way: str) -> float:
    """Microseconds of a case."""
    share = {DENSE: 1.0, "2:4": 1.0, "2:6": 4 / 3, "2:8": 1.5, "2:inf": 2.0}[pattern]
    return rows * columns / 3.5e6 * WAYS[way] * share * (1 + tokens / 200)


def gpu_like(folder: Path, level: str = LAYER, device: str = "NVIDIA H200", faster: float = 1.0) -> Results:
    """All ways of a model in INT8, and bfloat16 to compare with; times divided by `faster`."""
    found = Results(folder, level, {"device": device, "torch": "2.11.0"}, ceilings={"copy_bytes_per_second": 4.2e12})
    for linear, (rows, columns) in LINEARS.items():
        for tokens in TOKENS:
            for pattern in (DENSE, *PATTERNS):
                ways = ("stock", "dense", "int_mm") if pattern == DENSE else ("many_sparse", "few_sparse", "auto")
                for way in ways:
                    if way == "few_sparse" and tokens > 64:
                        continue
                    case = Case(level, "Qwen2.5-7B", linear, rows, columns, "int8", pattern, way, tokens)
                    taken = seconds_of(rows, columns, tokens, pattern, way) / faster
                    times = Times(taken, taken * 0.99, taken * 1.02, taken + 20)
                    found.rows[case.key] = Row(case, times, "1", 1.5e-3, 650.0, 1500.0, 60.0)
            case = Case(level, "Qwen2.5-7B", linear, rows, columns, "bf16", DENSE, "linear", tokens)
            taken = 2 * seconds_of(rows, columns, tokens, DENSE, "dense") / faster
            found.rows[case.key] = Row(case, Times(taken, taken, taken, taken))
    return found
