"""How the product of few tokens divides its work among blocks, and which of its forms runs a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

ROWS = 64
"""Rows of a warpgroup."""
SLAB_ROWS = 16
"""Rows of a warp."""
MOST_TOKENS = 64
MOST_UNITS = 128
"""Units of codes that a block holds, at most."""


def ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


@dataclass(frozen=True)
class Unit:
    """columns (slid, if the weight is sparse); warp_bytes: of 16 rows of it, as a warp copies them; half: where half of
    it can be copied and multiplied on its own."""

    columns: int
    warp_bytes: int
    half: Unit | None = None


@dataclass(frozen=True)
class Form:
    """A form of the product. groups: warpgroups of a block; stages: units in the ring of a warp; stream: codes are
    copied unit by unit and every warpgroup has rows of its own, else a block holds codes and its warpgroups take
    turns. cluster: blocks that have a tile among them, as all clusters have one; 0: every block has an equal share of
    all tiles. slabs: of whole rows, the most slabs of 16 rows that a block has (streamed, cluster 1), its tile, over
    all columns, so that it copies the codes once; 0: tiles are as many rows as a block's warps have."""

    groups: int
    stages: int
    stream: bool
    cluster: int = 0
    slabs: int = 0

    @property
    def row_groups(self) -> int:
        return self.groups if self.stream else 1

    @property
    def turns(self) -> int:
        """Warpgroups that take turns."""
        return self.groups // self.row_groups

    @property
    def tile_rows(self) -> int:
        """At most, if of whole rows."""
        return SLAB_ROWS * self.slabs if self.slabs else ROWS * self.row_groups


HOLDING = tuple(Form(2, stages, stream=False) for stages in (5, 4, 3))
STREAMING = tuple(
    Form(groups, stages, stream=True) for groups, most in ((2, 6), (1, 4)) for stages in range(most, 1, -1)
)
"""The best first; which fits depends on the tokens and the device. More stages than these win nothing (LOG.md)."""
CLUSTERED = tuple(
    Form(2, stages, stream=True, cluster=cluster) for cluster in range(1, 9) for stages in range(6, 1, -1)
)
TOGETHER = (16, 18)
"""Multiprocessors of one part of a GPU, within which a cluster lies (`most_clusters`)."""
THREES = 3 / 11
"""Clusters of three that find room for each multiprocessor: fewer than such parts would have."""
PART_COST, CLUSTER_COST = 10, 50_000
"""Of a byte of a published part, and of the barriers of a cluster, in bytes that a block copies in that time. Fitted to
all forms of 72 products on an H200: what is chosen takes 0.8 % longer than the fastest form, on average over models and
numbers of tokens, and 7 % at most."""
FEW_SLABS, MANY_SLABS, MOST_SLABS = 4, 8, 20
"""Of a block that has whole rows: it has more than FEW_SLABS, for others have as many; if more than MANY_SLABS, more
rows than any other block, it took 2 to 26 % less time than those in all of 60 products on an H200; with more than
MOST_SLABS, each of its warps would have too few registers."""
SHALLOW, FEW_UNITS = 3, 16
"""Stages that suffice where a block has no more units than so many; others had better stream their codes."""


@dataclass(frozen=True)
class Division:
    """rows, columns (K', or K if dense): of the weight. padded: tokens, a multiple of 8. most_blocks: at most.

    ValueError if the order has too many places for 32 bits.
    """

    rows: int
    columns: int
    padded: int
    unit: Unit
    most_blocks: int
    form: Form

    def __post_init__(self) -> None:
        if (self.tiles * self.units + 1) * (self.blocks + 1) >= 2**32:
            raise ValueError(f"a weight of {self.rows} x {self.columns} is too large")

    @property
    def tiles(self) -> int:
        if self.form.slabs:
            return min(self.most_blocks, self.slabs)
        return ceil_div(self.rows, self.form.tile_rows)

    @property
    def slabs(self) -> int:
        return ceil_div(self.rows, SLAB_ROWS)

    def first_slab(self, tile: int) -> int:
        """Of whole rows: the first tiles have the most slabs, the others one fewer."""
        fewer = self.form.slabs - 1
        return tile * fewer + min(tile, self.slabs - self.tiles * fewer)

    @property
    def units(self) -> int:
        """Of a tile."""
        return ceil_div(self.columns, self.unit.columns)

    @property
    def blocks(self) -> int:
        if self.form.cluster:
            return self.tiles * self.form.cluster
        return min(self.most_blocks, self.tiles * self.units)

    def begin(self, block: int) -> int:
        """The first place of a block in the order of tiles, then units."""
        return self.tiles * self.units * block // self.blocks

    def block_of(self, place: int) -> int:
        """The block with this place."""
        return ((place + 1) * self.blocks - 1) // (self.tiles * self.units)

    @property
    def share(self) -> int:
        """The most units of weight that a block multiplies."""
        return ceil_div(self.tiles * self.units, self.blocks)

    @property
    def held(self) -> int:
        """The most units of codes that a block has in shared memory."""
        return self.form.stages if self.form.stream else min(self.share, self.units)

    @cached_property
    def parts(self) -> int:
        """The most blocks that have units of one tile."""
        firsts = range(0, self.tiles * self.units, self.units)
        return max(self.block_of(first + self.units - 1) - self.block_of(first) + 1 for first in firsts)

    @property
    def part(self) -> int:
        """The most sums of a part."""
        return self.padded * self.form.tile_rows

    @property
    def exchanged(self) -> int:
        """Sums that blocks have places for to exchange: of two parts each, of the tiles that begin before and within
        the block; 0 if no tile is divided, or among a cluster alone."""
        return 2 * self.blocks * self.part if self.parts > 1 and not self.form.cluster else 0

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        form = self.form
        ring = form.turns * form.tile_rows // SLAB_ROWS * form.stages * self.unit.warp_bytes
        gathered = form.turns * self.padded * (form.tile_rows + 4) * 4
        copied = ring + self.held * self.unit.columns * self.padded
        return max(copied, gathered) if form.cluster else copied + gathered

    def fits(self, shared_bytes: int) -> bool:
        cluster = self.form.cluster
        if cluster and (cluster > self.units or self.tiles > most_clusters(self.most_blocks, cluster)):
            return False
        if self.form.slabs and self.form.slabs != ceil_div(self.slabs, self.tiles):
            return False
        return self.shared_bytes <= shared_bytes and (self.form.stream or self.held <= MOST_UNITS)

    @property
    def cost(self) -> int:
        """An estimate of what a block takes beside what all take, in bytes that it copies."""
        form, codes = self.form, self.unit.columns * self.padded
        copied = self.share * (form.tile_rows // SLAB_ROWS) * self.unit.warp_bytes
        copied += (self.share if form.stream else self.held) * codes
        if form.cluster:
            return copied + (CLUSTER_COST if form.cluster > 1 else 0)
        return copied + (self.parts * 4 * self.part * PART_COST if self.parts > 1 else 0)


def most_clusters(processors: int, size: int) -> int:
    """The clusters of so many blocks that find room at once, one block on a multiprocessor.

    Which multiprocessors are off, and so how large the parts are, differs from device to device: what finds room both
    in parts of 16 and of 18, the last one smaller. On an H200 36 clusters of 3, 28 of 4 and 14 of 7 or 8 ran at once;
    40 of 3, 32 of 4, 24 of 5 and 16 of 7 or 8 ran one after another.
    """
    found = min(processors // part * (part // size) + processors % part // size for part in TOGETHER)
    return min(found, int(processors * THREES)) if size == 3 else found


def most_exchanged(blocks: int, tokens: int = MOST_TOKENS) -> int:
    """The most sums that any division among so many blocks exchanges."""
    return 2 * blocks * tokens * max(form.tile_rows for form in (*HOLDING, *STREAMING))


def divisions(rows: int, columns: int, padded: int, unit: Unit, blocks: int) -> Iterator[Division]:
    """Ways to divide the product among equal blocks, the best first."""
    for form in (*HOLDING, *STREAMING):
        division = Division(rows, columns, padded, unit, blocks, form)
        if form.stream or form.stages > SHALLOW or division.share <= FEW_UNITS:
            yield division


def clustered(rows: int, columns: int, padded: int, unit: Unit, blocks: int) -> Iterator[Division]:
    """Ways to divide it among clusters, those with the deepest rings first."""
    yield from (Division(rows, columns, padded, unit, blocks, form) for form in CLUSTERED)


def whole(rows: int, columns: int, padded: int, unit: Unit, blocks: int) -> Iterator[Division]:
    """Ways to divide it among blocks that have whole rows, those with the deepest rings first, of whole units before
    halves: of many rows, three units may not fit."""
    slabs = ceil_div(ceil_div(rows, SLAB_ROWS), blocks)
    if FEW_SLABS < slabs <= MOST_SLABS:
        for one in (unit, unit.half) if unit.half else (unit,):
            for stages in range(6, 2, -1):
                form = Form(ceil_div(slabs, 4), stages, stream=True, cluster=1, slabs=slabs)
                yield Division(rows, columns, padded, one, blocks, form)
