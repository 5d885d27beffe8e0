"""The forms of the product of many tokens, and which of them multiplies how many."""

from __future__ import annotations

from dataclasses import dataclass

from ..few_tokens.division import ROWS, Unit, ceil_div

PIECE_COLUMNS = 128
"""Columns of a piece of codes."""
WARP_OUTPUTS = 1024
"""Bytes in which a warp turns its outputs."""
ALIGNMENT = 1024
"""Of what the copy engine swizzles."""
BARRIERS = 512
"""Bytes for them, at most."""
LEAST_STAGES, MOST_STAGES = 3, 12
BAND = 8
"""Tiles of tokens that are done before the next rows: together with as many tiles of rows they stay in the L2 cache."""


@dataclass(frozen=True)
class Form:
    """tokens: of a tile. cluster: blocks that share copies of the codes. warpgroups: of 64 rows, of a block."""

    tokens: int
    cluster: int
    warpgroups: int = 2

    @property
    def rows(self) -> int:
        """Of a cluster's tile."""
        return ROWS * self.warpgroups * self.cluster

    @property
    def threads(self) -> int:
        """Of a block; those of the last warpgroup copy."""
        return 128 * (self.warpgroups + 1)

    def fits(self, unit: Unit) -> bool:
        """Whether the registers suffice: of three warpgroups, for units of few steps alone."""
        return self.warpgroups == 2 or unit.columns <= 256

    def rings(self, unit: Unit, shared_bytes: int) -> Rings | None:
        """The deepest that fit: as many units as the pieces cover, and one that is being read. None if none do."""
        for stages in range(MOST_STAGES, LEAST_STAGES - 1, -1):
            rings = Rings(self, unit, stages, ceil_div(stages * PIECE_COLUMNS, unit.columns) + 1)
            if rings.shared_bytes <= shared_bytes:
                return rings
        return None


@dataclass(frozen=True)
class Rings:
    """What a block has in shared memory. stages: pieces of codes. units: of the weight."""

    form: Form
    unit: Unit
    stages: int
    units: int

    @property
    def shared_bytes(self) -> int:
        codes = self.stages * PIECE_COLUMNS * self.form.tokens
        a_warp = self.units * self.unit.warp_bytes + WARP_OUTPUTS
        return codes + 4 * self.form.warpgroups * a_warp + BARRIERS + ALIGNMENT


@dataclass(frozen=True)
class Tiling:
    """rows, columns (slid): of the weight. clusters: that run at a time."""

    rows: int
    columns: int
    tokens: int
    unit: Unit
    form: Form
    clusters: int

    @property
    def units(self) -> int:
        return ceil_div(self.columns, self.unit.columns)

    @property
    def row_tiles(self) -> int:
        return ceil_div(self.rows, self.form.rows)

    @property
    def token_tiles(self) -> int:
        return ceil_div(self.tokens, self.form.tokens)

    @property
    def blocks(self) -> int:
        """That are launched."""
        return self.form.cluster * min(self.clusters, self.row_tiles * self.token_tiles)

    @property
    def rounds(self) -> int:
        """Tiles of the cluster that has most."""
        return ceil_div(self.row_tiles * self.token_tiles, self.clusters)

    @property
    def cycles(self) -> float:
        """Roughly, of the product: what the tensor cores take at the share of their rate that the form reaches, and
        the start and end of a tile, which overlap for the most part."""
        steps = self.units * self.unit.columns // 64
        rate = RATES[self.form.tokens, self.form.cluster, self.form.warpgroups]
        return self.rounds * (steps * self.form.warpgroups * self.form.tokens / 2 / rate + TILE_CYCLES)


RATES = {
    (256, 2, 2): 0.76, (256, 1, 2): 0.66, (192, 2, 3): 0.78, (192, 2, 2): 0.74, (128, 2, 2): 0.6, (128, 1, 2): 0.55,
    (64, 1, 2): 0.35,
}  # fmt: skip
"""The share of the tensor cores' rate that a form reaches, by tokens, cluster and warpgroups."""
TILE_CYCLES = 1500.0
FORMS = tuple(Form(*numbers) for numbers in RATES)
