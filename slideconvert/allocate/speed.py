"""The times of linears on a GPU, dense and with each pattern, from tables of measurements (rows.py).

A lookup takes the measured layer (or linear) of the nearest shape, by the distance of (log out, log in); for a layer,
of their means weighted by the sizes of the linears. Between measured numbers of tokens, it interpolates times and
ratios log over log. Times scale with the number of weights. So a measured model gets exactly the numbers of its table,
and in a table of layers all linears of a model have the same speed-up.

No speed-up exceeds its bound, that of sparse tensor cores twice as fast as dense ones: beyond it, the dense product of
the table runs slower than the GPU can, and the excess is no promise. Speed-ups over the dense linears that a server
runs (SERVED) stay as measured, since whoever serves gains them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.patterns import Pattern
from ..errors import InputError, NotMeasuredError, pick
from .gpus import BUNDLED
from .rows import SERVED, Row, Shape, read_rows

DEFAULT_TOKENS = 4096
"""Tokens at once by default: a prompt, or a server's batch of prompts, where 2:L gains most. Decoding reads the
weights once for few tokens, and 2:8 reads 0.94 bytes per weight."""


def counted(tokens: int) -> str:
    """1 token, 64 tokens."""
    return "1 token" if tokens == 1 else f"{tokens} tokens"


@dataclass(frozen=True)
class Times:
    """The time of a linear with each pattern, in the unit of its table.

    dense: 8-bit without pruning, on dense kernels. sparse: by pattern, for the patterns of the table. measured: the
    measured GPU, model and number of tokens, as text. in_table: the sparse times that the table has, of which some
    exceed the bound of their pattern.
    """

    dense: float
    sparse: Mapping[Pattern, float]
    measured: str
    in_table: Mapping[Pattern, float]

    def of(self, pattern: Pattern) -> float:
        """The time with this pattern. 2:inf runs dense, since sliding it gains nothing.

        NotMeasuredError if the table does not have it.
        """
        if not pattern.prunes:
            return self.dense
        if pattern not in self.sparse:
            raise NotMeasuredError(
                f"the table has no time of {pattern} for {self.measured}",
                hint=f"it has {', '.join(map(str, self.sparse))}; choose one of these, or give a table with {pattern}",
            )
        return self.sparse[pattern]


@dataclass(frozen=True)
class SpeedTable:
    """The measurements of one GPU. source: the comments of the file on these measurements."""

    gpu: str
    source: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, gpu: str) -> SpeedTable:
        """The bundled table for the name of a GPU (a100, H100 …), or a table from the path of a .csv file.

        InputError for an unknown name, with the nearest one, and for a file that cannot be read, with its line.
        """
        if gpu.lower().endswith(".csv"):
            return cls._read(Path(gpu), None)
        try:
            name = pick(gpu.lower(), BUNDLED, "GPU")
        except InputError as error:
            raise InputError(error.what, hint=f"{error.hint}, or give the path of a .csv file of times") from error
        return cls._read(Path(__file__).with_name(BUNDLED[name]), name)

    @classmethod
    def _read(cls, path: Path, gpu: str | None) -> SpeedTable:
        source, rows = read_rows(path)
        if gpu is None:
            gpus = list(dict.fromkeys(row.gpu for row in rows))
            if len(gpus) > 1:
                raise InputError(f"{path}: times of {', '.join(gpus)}", hint="give a file with the times of one GPU")
            gpu = gpus[0]
        others = {row.gpu for row in rows} - {gpu}
        about = tuple(line for line in source if re.split("[,:]", line)[0] not in others)
        return cls(gpu, about, tuple(row for row in rows if row.gpu == gpu))

    @property
    def served(self) -> bool:
        """Whether speed-ups are over the dense linears that a server runs."""
        return any(line.startswith(SERVED) for line in self.source)

    def times(self, layer: Sequence[Shape], scheme: str, tokens: int = DEFAULT_TOKENS) -> list[Times]:
        """The times of the linears of one decoder layer, in their order; `layer` has their shapes, fused as served.

        scheme: int8 or fp8. NotMeasuredError if the table has no times of it, or none for this number of tokens.
        """
        rows = [row for row in self.rows if row.scheme == scheme]
        if not rows:
            known = ", ".join(sorted({row.scheme for row in self.rows}))
            raise NotMeasuredError(
                f"the table of {self.gpu} has no times of {scheme}, only of {known}",
                hint=f"choose {known}, another GPU, or give the path of a .csv file of times",
            )
        if len(rows[0].linears) > 1:
            whole = _at(_nearest(rows, layer), tokens)
            return [_share(whole, shape, bounded=not self.served) for shape in layer]
        return [_share(_at(_nearest(rows, [shape]), tokens), shape, bounded=not self.served) for shape in layer]


def _nearest(rows: Sequence[Row], linears: Sequence[Shape]) -> list[Row]:
    """The rows of the measured linears that are nearest in shape, by rising tokens; of equally near ones the first."""
    here = _point(linears)
    found = min(dict.fromkeys(row.linears for row in rows), key=lambda measured: math.dist(_point(measured), here))
    return sorted((row for row in rows if row.linears == found), key=lambda row: row.tokens)


def _point(linears: Sequence[Shape]) -> tuple[float, float]:
    """The mean of (log out, log in), weighted by the number of weights of each linear."""
    means = [sum(math.log(shape[i]) * math.prod(shape) for shape in linears) / _weights(linears) for i in (0, 1)]
    return means[0], means[1]


def _weights(linears: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in linears)


def _at(rows: Sequence[Row], tokens: int) -> Row:
    """One row for any number of tokens, from the rows of the same linears."""
    above = next((i for i, row in enumerate(rows) if row.tokens >= tokens), None)
    if above is None or tokens < rows[0].tokens:
        raise NotMeasuredError(
            f"{counted(tokens)}: {rows[0].model} was measured on {rows[0].gpu} for {rows[0].tokens} to "
            f"{rows[-1].tokens} tokens",
            hint=f"choose a number of tokens between these, or measure on that GPU: slideconvert bench layer --model "
            f"MODEL --tokens {tokens}, and give its table with --speed-table bench-layer/speed_table.csv",
        )
    high = rows[above]
    if high.tokens == tokens:
        return high
    low = rows[above - 1]
    share = math.log(tokens / low.tokens) / math.log(high.tokens / low.tokens)
    ratios = {
        pattern: _between(speedup, high.speedups[pattern], share)
        for pattern, speedup in low.speedups.items()
        if pattern in high.speedups
    }
    return replace(low, tokens=tokens, dense=_between(low.dense, high.dense, share), speedups=ratios)


def _between(low: float, high: float, share: float) -> float:
    return float(low * (high / low) ** share)


def _share(row: Row, shape: Shape, *, bounded: bool) -> Times:
    """The times of a linear: those of the row, scaled by its share of the row's weights. bounded: no speed-up exceeds
    the bound of its pattern."""
    dense = row.dense * math.prod(shape) / _weights(row.linears)
    gains = {
        pattern: min(gain, pattern.ideal_speedup or gain) if bounded else gain for pattern, gain in row.speedups.items()
    }
    return Times(
        dense,
        sparse={pattern: dense / gain for pattern, gain in gains.items()},
        measured=f"{row.model} on {row.gpu} at {counted(row.tokens)}",
        in_table={pattern: dense / gain for pattern, gain in row.speedups.items()},
    )
