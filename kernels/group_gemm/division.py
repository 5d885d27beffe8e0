"""How a product of few tokens is divided among blocks and warps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import hypot

from ..few_tokens.division import ceil_div, most_exchanged
from .prepared import SLAB, UNIT

MOST_TOKENS = 64
LIMITS = (1, 8, 16, 32, 64)
"""Numbers of tokens up to which a product is divided alike."""
PITCH = 2 * UNIT + 16
"""Bytes between the activations of two tokens in shared memory."""
QUAD_WORDS = 128
"""Words of four sums of every lane of a warp."""
RESERVED = 1024
"""Bytes of shared memory that every block takes beside what is asked for."""
LAUNCH_CYCLES, BLOCK_CYCLES = 2000, 1200
"""What a product takes that does nothing, and every block of a multiprocessor beside."""
WAIT_CYCLES, TILE_WAIT_CYCLES = 1900, 40
"""Of a round of one warp alone, and for 8 of its tokens: waiting for one instruction after another."""
CHUNK_CYCLES, TILE_CYCLES, ROW_CYCLES = 510, 300, 100
"""Of a chunk on a scheduler that other warps keep busy, for 8 of its tokens, and for a row of activations (assumed)."""
CUT_CYCLES, PART_CYCLES, WORDS_PER_CYCLE = 800, 110, 7
"""What exchanging sums takes, every part of them beside, and how many words of them are added up in a cycle."""


@dataclass(frozen=True)
class Gpu:
    """What the division must know of a GPU. Bytes of shared memory: of a block, at most, and of a multiprocessor."""

    processors: int
    block_bytes: int
    processor_bytes: int


@dataclass(frozen=True)
class Form:
    """rows, columns: warps of a block with slabs of their own, and with units of their own. stages: chunks in the ring
    of a warp. blocks: of a multiprocessor."""

    rows: int
    columns: int
    stages: int
    blocks: int

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
STAGES = (3, 2)


@dataclass(frozen=True)
class Division:
    """rows, columns: of the weight. tokens: one of LIMITS. room: bytes of a chunk, at most. whole: every tile has a
    block of its own. ValueError if the order has too many places for 32 bits."""

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
        return self.tiles if self.whole else min(self.places, self.gpu.processors * self.form.blocks)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        form, tokens = self.form, 8 * self.token_tiles
        gathered = (form.columns - 1) * self.part * 4
        copied = form.columns * tokens * PITCH if self.token_tiles > 1 else 0
        return form.stages * (form.warps * self.room + copied) + gathered

    @property
    def part(self) -> int:
        """Words of a block's part of a tile."""
        return self.form.rows * 2 * self.token_tiles * QUAD_WORDS

    @property
    def cut(self) -> bool:
        """Whether blocks exchange parts of tiles."""
        return any(self.places * block // self.blocks % self.units for block in range(1, self.blocks))

    @property
    def exchanged(self) -> int:
        """Words that blocks exchange, at most."""
        return self.blocks * self.part if self.cut else 0

    @property
    def fits(self) -> bool:
        taken = self.shared_bytes + RESERVED
        return (
            taken <= self.gpu.block_bytes
            and taken * self.form.blocks <= self.gpu.processor_bytes
            and self.exchanged <= most_exchanged(self.gpu.processors)
            and self.blocks <= self.gpu.processors * self.form.blocks
        )

    @cached_property
    def rounds(self) -> int:
        """The most rounds of a block."""
        most = 0
        for block in range(self.blocks):
            begin, end, rounds = self.places * block // self.blocks, self.places * (block + 1) // self.blocks, 0
            while begin < end:
                upto = min(end, (begin // self.units + 1) * self.units)
                rounds += ceil_div(upto - begin, self.form.columns)
                begin = upto
            most = max(most, rounds)
        return most

    @cached_property
    def cycles(self) -> int:
        """An estimate of what it takes, to compare divisions: fitted to a thousand measured on an H200."""
        form = self.form
        resident = ceil_div(self.blocks, self.gpu.processors)
        read = ceil_div(self.tokens * form.columns, form.warps) * ROW_CYCLES
        wait = WAIT_CYCLES + self.token_tiles * TILE_WAIT_CYCLES + read
        busy = resident * form.warps / 4 * (CHUNK_CYCLES + self.token_tiles * TILE_CYCLES + read)
        parts = ceil_div(self.blocks, self.tiles)
        exchange = CUT_CYCLES + parts * (PART_CYCLES + self.part // WORDS_PER_CYCLE) if self.cut else 0
        return LAUNCH_CYCLES + resident * BLOCK_CYCLES + int(self.rounds * hypot(wait, busy)) + exchange


def divisions(rows: int, columns: int, tokens: int, room: int, gpu: Gpu) -> Iterator[Division]:
    """Those that fit the GPU."""
    tiles = ceil_div(tokens, 8)
    for row_warps, column_warps, most in SHAPES[tiles]:
        for blocks, stages, whole in product(range(most, 0, -1), STAGES, (True, False)):
            form = Form(row_warps, column_warps, stages, blocks)
            division = Division(rows, columns, tokens, room, gpu, form, whole)
            if division.fits:
                yield division


def divide(rows: int, columns: int, tokens: int, room: int, gpu: Gpu) -> Division | None:
    """The best division, by the estimate, then by the chunks in flight; None if none fits."""
    fitting = divisions(rows, columns, tokens, room, gpu)
    return min(fitting, key=lambda one: (one.cycles, -one.form.in_flight), default=None)
