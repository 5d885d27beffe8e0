"""What one row of a result is: one way to run one linear for one number of tokens, and what was measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LEVELS = KERNEL, LAYER = "kernel", "layer"
"""kernel: the product alone, of activations that are quantized already, with its scales. layer: the whole linear,
bfloat16 in and out: quantize (and lift), product, scales."""
DENSE = "dense"
"""The pattern of linears of which nothing is pruned."""
SQUARE = "square"
"""The linear of models that are a square matrix; their tokens are as many as their rows."""


@dataclass(frozen=True)
class Case:
    """linear: its name in a layer of the model, q/k/v and gate/up fused where the host fuses them. rows, columns: N, K.
    pattern: dense or 2:L. way: the name of the kernel or backend."""

    level: str
    model: str
    linear: str
    rows: int
    columns: int
    precision: str
    pattern: str
    way: str
    tokens: int

    @property
    def key(self) -> str:
        """Tells a case from all others of a result."""
        return "/".join(map(str, asdict(self).values()))


@dataclass(frozen=True)
class Times:
    """Microseconds of a call. device: median of the samples; low, high: the first and the last of them in order.
    wall: of calls from Python, one after another, as an eager program makes them."""

    device: float
    low: float
    high: float
    wall: float


@dataclass(frozen=True)
class Row:
    """A case, and its times or why it has none.

    version: of the way; another one is measured anew. error: of the output against float64, relative in the Euclidean
    norm. watts, megahertz, celsius: of the GPU while it was timed, None where nothing reads them. failure: "" if it was
    timed.
    """

    case: Case
    times: Times | None
    version: str = ""
    error: float | None = None
    watts: float | None = None
    megahertz: float | None = None
    celsius: float | None = None
    failure: str = ""

    @property
    def measured(self) -> bool:
        """Whether it has times."""
        return self.times is not None

    @property
    def label(self) -> tuple[str, ...]:
        """What cases of other linears and numbers of tokens have in common with it."""
        return self.case.model, self.case.precision, self.case.pattern, self.case.way

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Least, median and most of the samples. ValueError if it failed."""
        if self.times is None:
            raise ValueError(f"{self.case.key} was not timed")
        return self.times.low * 1e-6, self.times.device * 1e-6, self.times.high * 1e-6

    def flat(self) -> dict[str, Any]:
        """As a line of a table: one value for each of COLUMNS."""
        times = asdict(self.times) if self.times else dict.fromkeys(("device", "low", "high", "wall"))
        rest = {name: getattr(self, name) for name in FACTS}
        return {**asdict(self.case), **{f"{name}_us": value for name, value in times.items()}, **rest}

    @classmethod
    def of(cls, flat: dict[str, Any]) -> Row:
        """The inverse of `flat`. KeyError or TypeError for anything else."""
        case = Case(**{name: flat[name] for name in Case.__dataclass_fields__})
        found = {name: flat[f"{name}_us"] for name in Times.__dataclass_fields__}
        times = None if found["device"] is None else Times(**found)
        return cls(case, times, *(flat[name] for name in FACTS))


FACTS = ("version", "error", "watts", "megahertz", "celsius", "failure")
"""What a row says beside its case and times."""
COLUMNS = tuple(Row(Case("", "", "", 0, 0, "", "", "", 0), None).flat())
"""Of a table of rows, in order."""
