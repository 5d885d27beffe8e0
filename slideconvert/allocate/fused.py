"""Fused groups, the linears that a server runs as one matrix: their times, and the patterns worth trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.patterns import ALL, BlockPattern
from ..models.architecture import Linear, input_groups, rule_of
from .rows import Shape
from .speed import DEFAULT_TOKENS, SpeedTable, Times


@dataclass(frozen=True)
class FusedGroup:
    """Linears of one decoder layer that a server runs as one matrix. shape: (out, in) of that matrix."""

    linears: tuple[Linear, ...]
    shape: Shape

    @property
    def layer(self) -> int:
        return self.linears[0].layer

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def kinds(self) -> list[str]:
        """q, k, v."""
        return [linear.kind.removesuffix("_proj") for linear in self.linears]

    @property
    def match(self) -> str:
        """The submodules in the layer as a rule of a recipe matches them: self_attn.[qkv]_proj, mlp.[gu]*_proj."""
        return rule_of(linear.submodule for linear in self.linears)

    def __str__(self) -> str:
        return f"layer {self.layer} {'/'.join(self.kinds)}"


def fuse(shapes: Mapping[Linear, Shape]) -> list[FusedGroup]:
    """Linears with their shapes (out, in) -> their fused groups, layer by layer, in order of data flow."""
    return [
        FusedGroup(members, (sum(shapes[member][0] for member in members), shapes[members[0]][1]))
        for members in input_groups(shapes)
    ]


def group_times(
    groups: Sequence[FusedGroup], table: SpeedTable, scheme: str, tokens: int = DEFAULT_TOKENS
) -> list[Times]:
    """The times of each group. The lookup needs all groups of a layer.

    InputError if the table has no times for that scheme or number of tokens.
    """
    layers: dict[int, list[FusedGroup]] = {}
    for group in groups:
        layers.setdefault(group.layer, []).append(group)
    found: dict[FusedGroup, Times] = {}
    for members in layers.values():
        found |= zip(members, table.times([group.shape for group in members], scheme, tokens), strict=True)
    return [found[group] for group in groups]


def worth_trying(times: Sequence[Times]) -> tuple[BlockPattern, ...]:
    """The patterns that an optimal allocation for a speed-up can contain; errors of others need not be measured.

    All groups have a time with such a pattern, and some group is faster with it than dense and than with every pattern
    of higher density.
    """
    timed = [pattern for pattern in ALL if pattern.prunes and all(pattern in time.sparse for time in times)]
    return tuple(
        pattern
        for submodule, pattern in enumerate(timed)
        if any(time.of(pattern) < min(map(time.of, [*timed[submodule + 1 :], BlockPattern(None)])) for time in times)
    )
