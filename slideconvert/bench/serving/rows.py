"""What one row of a served result is: a checkpoint under one load, and what it reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class ServeCase:
    """checkpoint: its name. pattern: dense, or what is pruned. setting: of the runtime, in words; "" for stock vLLM and
    defaults. what: decode (size: sequences at once), latency (tokens of an output), prefill (tokens of all
    prompts), mixed (requests at once), rate (requests per second). shape: the size in words, 8x1024."""

    model: str
    checkpoint: str
    precision: str
    pattern: str
    setting: str
    what: str
    size: float
    shape: str

    @property
    def key(self) -> str:
        """Tells a case from all others of a result."""
        return "/".join(map(str, asdict(self).values()))


@dataclass(frozen=True)
class ServeRow:
    """A case, and what was reached.

    version: of the code that served it. tokens_per_second: median of the samples; low, high: least and most. Latency in
    milliseconds, of rates alone: ttft, from when a request was due to its first token; tpot, by token from there on;
    itl, between two tokens; each median, 90 % and 99 %. gib: of the loaded weights. peak_gib: of a latency, what was
    allocated at most, weights and cache included; None on a CPU. load_s: of a start that had the
    machine for itself. runs: what the runtime says that it runs. failure: "" if it was measured.
    """

    case: ServeCase
    version: str = ""
    tokens_per_second: float | None = None
    low: float | None = None
    high: float | None = None
    ttft_50_ms: float | None = None
    ttft_90_ms: float | None = None
    ttft_99_ms: float | None = None
    tpot_50_ms: float | None = None
    tpot_90_ms: float | None = None
    tpot_99_ms: float | None = None
    itl_50_ms: float | None = None
    itl_90_ms: float | None = None
    itl_99_ms: float | None = None
    gib: float | None = None
    peak_gib: float | None = None
    load_s: float | None = None
    runs: str = ""
    failure: str = ""

    @property
    def measured(self) -> bool:
        """Whether it has a speed."""
        return self.tokens_per_second is not None

    @property
    def label(self) -> tuple[str, ...]:
        """What cases of other sizes have in common with it."""
        return self.case.model, self.case.checkpoint, self.case.setting, self.case.what

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Least, median and most seconds a token. ValueError if it failed."""
        if not (self.tokens_per_second and self.low and self.high):
            raise ValueError(f"{self.case.key} was not measured")
        return 1 / self.high, 1 / self.tokens_per_second, 1 / self.low

    def flat(self) -> dict[str, Any]:
        """As a line of a table."""
        return {**asdict(self.case), **{name: getattr(self, name) for name in FACTS}}

    @classmethod
    def of(cls, flat: dict[str, Any]) -> ServeRow:
        """The inverse of `flat`. KeyError or TypeError for anything else."""
        case = ServeCase(**{one.name: flat[one.name] for one in fields(ServeCase)})
        flat = {"peak_gib": None, **flat}  # results from before it was measured
        return cls(case, *(flat[name] for name in FACTS))


FACTS = tuple(one.name for one in fields(ServeRow) if one.name != "case")
"""What a row says beside its case."""
COLUMNS = (*(one.name for one in fields(ServeCase)), *FACTS)
"""Of a table of rows, in order."""
