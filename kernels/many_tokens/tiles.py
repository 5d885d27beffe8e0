"""The forms of the product of many tokens, and which of them multiplies how many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..few_tokens.division import ROWS, Unit, ceil_div

PIECE_COLUMNS = 128
"""Columns of a piece of codes."""
BAND = 8
"""Tiles of tokens that are done before the next rows: together with as many tiles of rows they stay in the L2 cache."""


@dataclass(frozen=True)
class Fitted:
    """A form as it fits into the shared memory of a GPU. constants: what its source is compiled with."""

    shared_bytes: int
    constants: dict[str, int]


@dataclass(frozen=True)
class Wgmma:
    """Of kernel.cu. tokens: of a tile. sharers: blocks of a cluster that share copies of the codes. splits: blocks of a
    cluster that have a tile among them, each some of its columns. warpgroups: of 64 rows, of a block. rate: the share
    of the tensor cores' rate that it reaches."""

    tokens: int
    sharers: int
    warpgroups: int
    rate: float
    splits: int = 1

    source: ClassVar[str] = "kernel.cu"
    barriers: ClassVar[int] = 512
    """Bytes for them, at most."""
    alignment: ClassVar[int] = 1024
    """Of what the copy engine swizzles."""
    stages: ClassVar[range] = range(12, 2, -1)

    @property
    def cluster(self) -> int:
        """Blocks of one."""
        return self.sharers * self.splits

    @property
    def rows(self) -> int:
        """Of a cluster's tile."""
        return ROWS * self.warpgroups * self.sharers

    @property
    def threads(self) -> int:
        """Of a block; those of the last warpgroup copy."""
        return 128 * (self.warpgroups + 1)

    def fitted(self, unit: Unit, shared_bytes: int) -> Fitted | None:
        """With the rings that run furthest ahead of those that fit, which is as far as the shallower one does; one of
        its units is being read. None if none fit."""
        pieces, slabs = unit.columns // PIECE_COLUMNS, 4 * self.warpgroups * unit.warp_bytes
        free = shared_bytes - self.barriers - self.alignment - self.warpgroups * self.outputs
        deepest = None
        for stages in self.stages:
            units = min((free - stages * PIECE_COLUMNS * self.tokens) // slabs, ceil_div(stages, pieces) + 1)
            ahead = min(stages, (units - 1) * pieces)
            if units >= 2 and (deepest is None or ahead > deepest[0]):
                deepest = ahead, stages, units
        if deepest is None:
            return None
        _, stages, units = deepest
        taken = shared_bytes - free + stages * PIECE_COLUMNS * self.tokens + units * slabs
        sizes = {"WARPGROUPS": self.warpgroups, "CLUSTER": self.cluster, "SPLITS": self.splits}
        rings = {"STAGES": stages, "UNITS": units}
        return Fitted(taken, {"TILES": self.tokens // 8, "BAND": BAND, **sizes, **rings})

    @property
    def outputs(self) -> int:
        """Bytes in which a warpgroup turns its outputs and keeps scales, of two times 16 tokens and of two tiles."""
        return 2 * (16 * ROWS * 2 + self.tokens * 4)

    def clusters(self, tiles: int, processors: int) -> int:
        """That are launched: they take tiles in turn, but of a tile that is split each has one."""
        return tiles if self.splits > 1 else min(processors // self.cluster, tiles)

    def halved(self, tiles: int, columns: int, processors: int) -> int:
        """Tiles of the last round that have two clusters each, or 0: if there are as many clusters, and it takes less
        time."""
        clusters = self.clusters(tiles, processors)
        rest = tiles % clusters
        fits = self.splits == 1 and 2 * rest <= clusters
        return rest if fits and self.tile(columns) / 2 > self.exchange else 0

    def tile(self, columns: int) -> float:
        """Cycles of one, roughly: what the tensor cores take at this rate, and its start and end, which others overlap
        for the most part. 4,096 sums a cycle are the full rate, and half of the slid codes are zero."""
        work = ROWS * self.warpgroups * self.tokens * columns / self.splits / 8192
        return work / self.rate + self.edge * self.splits

    def cycles(self, tiles: int, columns: int, processors: int) -> float:
        """Of the product, roughly."""
        rounds: float = ceil_div(tiles, processors // self.cluster)
        if not self.halved(tiles, columns, processors):
            return rounds * self.tile(columns)
        return (rounds - 0.5) * self.tile(columns) + self.exchange

    edge: ClassVar[float] = 1800.0
    exchange: ClassVar[float] = 6000.0
    """Cycles in which one of two clusters gets the sums of the other."""


@dataclass(frozen=True)
class Mma:
    """Of portable.cu. warp_bytes: of the metadata of a warp's rows are those beyond their values."""

    tokens: int = 128
    rows: int = 128
    threads: int = 256
    cluster: int = 1
    splits: int = 1

    source: ClassVar[str] = "portable.cu"
    stages: ClassVar[tuple[int, ...]] = (4, 3, 2)
    """More would overwrite metadata that is still read."""
    metadatas: ClassVar[int] = 2
    warp_outputs: ClassVar[int] = 1024
    """Bytes in which a warp turns its outputs."""

    def fitted(self, unit: Unit, shared_bytes: int) -> Fitted | None:
        """With as many stages as fit; None if too few do."""
        metadata = self.rows // 16 * (unit.warp_bytes - unit.columns * 8)
        outputs = self.threads // 32 * self.warp_outputs
        for stages in self.stages:
            taken = stages * PIECE_COLUMNS * (self.rows // 2 + self.tokens) + self.metadatas * metadata + outputs
            if taken <= shared_bytes:
                return Fitted(taken, {"TILES": self.tokens // 8, "BAND": BAND, "STAGES": stages})
        return None

    def clusters(self, tiles: int, processors: int) -> int:
        return tiles

    def halved(self, tiles: int, columns: int, processors: int) -> int:
        return 0

    def cycles(self, tiles: int, columns: int, processors: int) -> float:
        return ceil_div(tiles, processors) * float(self.rows * self.tokens * columns)


Form = Wgmma | Mma
FORMS = (
    Wgmma(256, 2, 2, rate=0.54), Wgmma(192, 2, 3, rate=0.55), Wgmma(128, 1, 3, rate=0.50),
    Wgmma(128, 1, 2, rate=0.45), Wgmma(128, 1, 2, rate=0.43, splits=2), Wgmma(128, 1, 2, rate=0.44, splits=4),
)  # fmt: skip
"""Four tiles. Rates, edge and exchange fit the times of 96 products on an H200, a warm one from 1,024 tokens on: what
is chosen takes 0.2 % longer than the best, in the mean over layers, patterns, and 128 to 16,384 tokens."""
PORTABLE = (Mma(),)


@dataclass(frozen=True)
class Tiling:
    """How a product is divided. rows, columns (slid): of the weight. What a launch needs is computed once, not in every
    call."""

    rows: int
    columns: int
    tokens: int
    unit: Unit
    form: Form
    processors: int

    @property
    def units(self) -> int:
        return ceil_div(self.columns, self.unit.columns)

    @cached_property
    def row_tiles(self) -> int:
        return ceil_div(self.rows, self.form.rows)

    @cached_property
    def token_tiles(self) -> int:
        return ceil_div(self.tokens, self.form.tokens)

    @cached_property
    def tiles(self) -> int:
        return self.row_tiles * self.token_tiles

    @cached_property
    def clusters(self) -> int:
        """That are launched."""
        return self.form.clusters(self.tiles, self.processors)

    @cached_property
    def halved(self) -> int:
        """Tiles of the last round that have two clusters each."""
        return self.form.halved(self.tiles, self.units * self.unit.columns, self.processors)

    @cached_property
    def exchanges(self) -> int:
        """Warpgroups that get sums of another: those of halved tiles."""
        return self.halved * ceil_div(self.form.rows, ROWS)

    @property
    def cycles(self) -> float:
        """Roughly, of the product; comparable among forms of one source."""
        return self.form.cycles(self.tiles, self.units * self.unit.columns, self.processors)
