"""How a product of few tokens is divided among blocks and warps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import hypot

from ..few_tokens.division import ceil_div, most_clusters, most_exchanged
from .prepared import SLAB, UNIT

MOST_TOKENS = 64
LIMITS = (1, 2, 8, 16, 32, 64)
"""Numbers of tokens up to which a product is divided alike."""
FEW = 2
"""Tokens that are multiplied without tensor cores, at most."""
OWN_BYTES, TOKEN_BYTES, UNALIGNED_BYTES = 512, 2560, 1024
"""Shared memory of a warp that multiplies few tokens, beside its ring: at least, and for every token; what alignment
takes of a block."""
PITCH = 2 * UNIT + 16
"""Bytes between the activations of two tokens in shared memory."""
QUAD_WORDS = 128
"""Words of four sums of every lane of a warp."""
RESERVED = 1024
"""Bytes of shared memory that every block takes beside what is asked for."""
WAIT_CYCLES, WAIT_TILE_CYCLES, WAIT_ROW_CYCLES, SHALLOW_CYCLES = 2850, 110, 110, 840
"""Of a round of one warp alone: waiting for one instruction after another, for 8 of its tokens, for a row of
activations that it copies, and for a ring of two chunks."""
CHUNK_CYCLES, ROW_CYCLES = 550, 85
"""Of a chunk on a scheduler that other warps keep busy, and for a row of activations."""
WARPGROUP_WAIT_CYCLES, WARPGROUP_SHALLOW_CYCLES = 1860, 300
"""By wgmma: of a round of one warp alone, and for a ring of two chunks."""
WARPGROUP_CYCLES, WARPGROUP_TILE_CYCLES = 420, 260
"""By wgmma: of a chunk on a scheduler that other warps keep busy; for 8 of its tokens, there and of a warp alone.
Rows of activations are copied meanwhile."""
CLUSTER_WORDS = 3
"""Words of a part that the blocks of a cluster add up in a cycle, barriers included."""
FEW_WAIT_CYCLES, FEW_CYCLES, FEW_TOKEN_CYCLES = 2070, 230, 485
"""Of few tokens: a round of one warp alone; a chunk on a scheduler that other warps keep busy, and for every token."""


@dataclass(frozen=True)
class Costs:
    """Cycles beside the chunks. launch: of a product that does nothing; block: for every block of a multiprocessor;
    tile: for every tile of a block; part: for a part of sums from another block. words: of it that are added up in a
    cycle."""

    launch: int
    block: int
    tile: int
    part: int
    words: float


TENSOR_CORES = Costs(launch=2160, block=1360, tile=170, part=220, words=3.6)
WARPGROUPS = Costs(launch=5250, block=4290, tile=170, part=220, words=5.1)
FEW_TOKENS = Costs(launch=1290, block=560, tile=0, part=310, words=1.6)


@dataclass(frozen=True)
class Gpu:
    """What the division must know of a GPU. Bytes of shared memory: of a block, at most, and of a multiprocessor.
    warpgroups: whether it has wgmma."""

    processors: int
    block_bytes: int
    processor_bytes: int
    warpgroups: bool = False


@dataclass(frozen=True)
class Form:
    """rows, columns: warps of a block with slabs of their own, and with units of their own. stages: chunks in the ring
    of a warp. blocks: of a multiprocessor. warpgroup: four warps of rows multiply together, by wgmma. cluster: blocks
    that have a tile among them and add up its parts in their shared memory; 1: parts are published."""

    rows: int
    columns: int
    stages: int
    blocks: int
    warpgroup: bool = False
    cluster: int = 1

    @property
    def warps(self) -> int:
        return self.rows * self.columns

    @property
    def in_flight(self) -> int:
        """Chunks of a multiprocessor that are copied at a time."""
        return self.blocks * self.warps * (self.stages - 1)


SHAPES = {
    1: ((8, 1, 3), (4, 2, 3), (2, 4, 3), (1, 8, 2), (4, 1, 6), (2, 1, 4)),
    2: ((8, 1, 2), (4, 2, 2), (2, 4, 2), (1, 8, 1), (4, 1, 4), (2, 1, 4)),
    4: ((8, 1, 2), (4, 2, 2), (2, 4, 1), (4, 1, 4), (2, 1, 4)),
    8: ((8, 1, 1), (4, 1, 2), (4, 2, 1)),
}
"""By the tokens / 8: warps of rows and columns, and the most blocks of a multiprocessor that registers suffice for."""
WARPGROUP_SHAPES = {
    4: ((8, 1, 1), (4, 2, 1), (4, 1, 3), (12, 1, 1)),
    8: ((8, 1, 1), (4, 2, 1), (4, 1, 2)),
}
"""The same of products by wgmma. Of fewer tokens, decoding takes the time."""
CLUSTERS = range(2, 9)
"""Blocks of a cluster, of products by wgmma; each block has a multiprocessor for itself."""
STAGES = (3, 2)


@dataclass(frozen=True)
class Division:
    """rows, columns: of the weight. tokens: one of LIMITS. room: bytes of a chunk, at most. whole: every tile has a
    block, or a cluster, of its own. ValueError if the order has too many places for 32 bits."""

    rows: int
    columns: int
    tokens: int
    room: int
    gpu: Gpu
    form: Form
    whole: bool

    def __post_init__(self) -> None:
        if (self.places + 1) * (self.blocks + 1) >= 2**32:
            raise ValueError(f"a weight of {self.rows} x {self.columns} is too large")

    @property
    def few(self) -> bool:
        """Whether tensor cores are left alone."""
        return self.tokens <= FEW

    @property
    def token_tiles(self) -> int:
        """Tokens / 8."""
        return ceil_div(self.tokens, 8)

    @property
    def tiles(self) -> int:
        return ceil_div(self.rows, SLAB * self.form.rows)

    @property
    def units(self) -> int:
        """Of a tile."""
        return ceil_div(self.columns, UNIT)

    @property
    def places(self) -> int:
        return self.tiles * self.units

    @property
    def blocks(self) -> int:
        return (
            self.tiles * self.form.cluster if self.whole else min(self.places, self.gpu.processors * self.form.blocks)
        )

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        form, tokens = self.form, 8 * self.token_tiles
        gathered = 0 if form.cluster > 1 else (form.columns - 1) * self.part * 4
        if self.few:
            own = OWN_BYTES + self.tokens * TOKEN_BYTES
            return form.warps * (form.stages * self.room + own) + UNALIGNED_BYTES + gathered
        pitch = 2 * UNIT if form.warpgroup else PITCH
        copied = form.columns * tokens * pitch if self.token_tiles > 1 else 0
        rings = form.stages * (form.warps * self.room + copied)
        return max(rings, form.columns * self.part * 4) if form.cluster > 1 else rings + gathered

    @property
    def part(self) -> int:
        """Words of a block's part of a tile."""
        return self.form.rows * (SLAB * self.tokens if self.few else 2 * self.token_tiles * QUAD_WORDS)

    @property
    def cut(self) -> bool:
        """Whether blocks publish parts of tiles."""
        return self.form.cluster == 1 and any(
            self.places * block // self.blocks % self.units for block in range(1, self.blocks)
        )

    @property
    def exchanged(self) -> int:
        """Words that blocks publish, at most."""
        return self.blocks * self.part if self.cut else 0

    @property
    def fits(self) -> bool:
        taken = self.shared_bytes + RESERVED
        return (
            taken <= self.gpu.block_bytes
            and taken * self.form.blocks <= self.gpu.processor_bytes
            and self.exchanged <= most_exchanged(self.gpu.processors)
            and self.blocks <= self.gpu.processors * self.form.blocks
            and self.form.cluster <= self.units
            and (self.form.cluster == 1 or self.tiles <= most_clusters(self.gpu.processors, self.form.cluster))
        )

    @cached_property
    def rounds(self) -> int:
        """The most rounds of a block."""
        return max(self._work[0])

    @cached_property
    def most_tiles(self) -> int:
        """The most tiles that a block has a part of."""
        return max(self._work[1])

    @cached_property
    def _work(self) -> tuple[list[int], list[int]]:
        """Rounds and tiles of every block."""
        all_rounds, all_tiles = [], []
        for block in range(self.blocks):
            begin, end = self.places * block // self.blocks, self.places * (block + 1) // self.blocks
            rounds, tiles = 0, 0
            while begin < end:
                upto = min(end, (begin // self.units + 1) * self.units)
                rounds += ceil_div(upto - begin, self.form.columns)
                tiles += 1
                begin = upto
            all_rounds.append(rounds)
            all_tiles.append(tiles)
        return all_rounds, all_tiles

    @property
    def chunk_cycles(self) -> tuple[int, int]:
        """Estimated, of a chunk: of a warp alone, and of a scheduler that other warps keep busy."""
        if self.few:
            return FEW_WAIT_CYCLES, FEW_CYCLES + self.tokens * FEW_TOKEN_CYCLES
        shallow = self.form.stages == min(STAGES)
        if self.form.warpgroup:
            multiplied = self.token_tiles * WARPGROUP_TILE_CYCLES
            wait = WARPGROUP_WAIT_CYCLES + multiplied + shallow * WARPGROUP_SHALLOW_CYCLES
            return wait, WARPGROUP_CYCLES + multiplied
        copied = ceil_div(self.tokens * self.form.columns, self.form.warps) if self.token_tiles > 1 else 0
        wait = WAIT_CYCLES + copied * WAIT_ROW_CYCLES + self.token_tiles * WAIT_TILE_CYCLES + shallow * SHALLOW_CYCLES
        return wait, CHUNK_CYCLES + copied * ROW_CYCLES

    @cached_property
    def cycles(self) -> int:
        """An estimate of what it takes, to compare divisions: fitted to 1978 measured on an H200, of wgmma to 260."""
        costs = FEW_TOKENS if self.few else WARPGROUPS if self.form.warpgroup else TENSOR_CORES
        wait, busy = self.chunk_cycles
        resident = ceil_div(self.blocks, self.gpu.processors)
        rounds = self.rounds * hypot(wait, resident * self.form.warps / 4 * busy)
        parts = ceil_div(self.blocks, self.tiles)
        exchange = parts * (costs.part + self.part / costs.words) if self.cut else 0
        if self.form.cluster > 1:
            exchange = self.form.columns * self.part / CLUSTER_WORDS
        return int(costs.launch + resident * costs.block + self.most_tiles * costs.tile + rounds + exchange)


def divisions(rows: int, columns: int, tokens: int, room: int, gpu: Gpu) -> Iterator[Division]:
    """Those that fit the GPU."""
    tiles = ceil_div(tokens, 8)
    warpgroup = gpu.warpgroups and tiles in WARPGROUP_SHAPES
    for row_warps, column_warps, most in (WARPGROUP_SHAPES if warpgroup else SHAPES)[tiles]:
        for blocks, stages, whole in product(range(most, 0, -1), STAGES, (True, False)):
            for cluster in (1, *CLUSTERS) if warpgroup and whole and blocks == 1 else (1,):
                form = Form(row_warps, column_warps, stages, blocks, warpgroup, cluster)
                division = Division(rows, columns, tokens, room, gpu, form, whole)
                if division.fits:
                    yield division


def divide(rows: int, columns: int, tokens: int, room: int, gpu: Gpu) -> Division | None:
    """The best division, by the estimate, then by the chunks in flight; None if none fits."""
    fitting = divisions(rows, columns, tokens, room, gpu)
    return min(fitting, key=lambda one: (one.cycles, -one.form.in_flight), default=None)
