"""The config of one linear: the fields of a recipe that a rule may also have, parsed and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..core.choices import CODES
from ..core.patterns import GroupPattern, Pattern, parse_pattern
from ..core.schemes import W4A16, W8A16, Scheme, no_groups, parse_scheme
from ..errors import InputError, pick
from ..prune import METHODS, parse_method

PRUNED_GROUP = 16
"""Default group size where whole groups are pruned: GQSA's own."""
BITS = {"4": W4A16, "8": W8A16}
"""The scheme that `bits` stands for."""


@dataclass(frozen=True)
class LinearConfig:
    """The config of one linear. None leaves the field as in the source (method None: prune nothing).

    codes: "ternary" or "full", for ternary weights. keep: copy the linear unchanged. group_size: weights per group.
    sparsity: share of groups to prune, 0 to 0.9. row_cap: maximum of groups in a row, as a multiple of the mean.
    """

    scheme: Scheme | None = None
    pattern: Pattern | None = None
    method: str | None = None
    codes: str | None = None
    keep: bool = False
    group_size: int | None = None
    symmetric: bool | None = None
    sparsity: float | None = None
    row_cap: float | None = None

    @property
    def whole_groups(self) -> bool:
        """Whether whole groups are pruned, by the sparsity, the method or the pattern."""
        by_method = self.method is not None and METHODS[self.method].whole_groups
        by_pattern = self.pattern is not None and self.pattern.whole_groups
        return self.sparsity is not None or by_method or by_pattern

    @property
    def by_groups(self) -> bool:
        """Whether groups of weights share a scale or are pruned together."""
        return self.whole_groups or (self.scheme is not None and self.scheme.grouped)

    def resolved(self, where: str) -> LinearConfig:
        """The same with the group size in the scheme, and sparsity and row cap as a pattern. InputError, which names
        `where`, for fields that contradict each other."""
        given = [name for name in ("group_size", "symmetric") if getattr(self, name) is not None]
        if self.whole_groups:
            pattern = self._group_pattern(where)
            if self.scheme:
                scheme = self.scheme.for_whole_groups(pattern.size, self.symmetric, where)
                return replace(self, scheme=scheme, pattern=pattern)
            if "symmetric" in given:
                raise no_groups("symmetric", "of the source", where)
            return replace(self, pattern=pattern)
        if self.row_cap is not None:
            raise InputError(
                f"{where}: row_cap without sparsity",
                hint="it counts the groups of a row: give a sparsity, or leave it out",
            )
        if self.scheme:
            return replace(self, scheme=self.scheme.resized(self.group_size, self.symmetric, where))
        if given:
            raise no_groups(given[0], "of the source", where)
        return self

    def _group_pattern(self, where: str) -> GroupPattern:
        if self.method and not METHODS[self.method].whole_groups and METHODS[self.method].prunes:
            raise InputError(
                f"{where}: method {self.method} prunes 2:L patterns, not whole groups", hint="use gqsa or saliency"
            )
        if isinstance(self.pattern, GroupPattern):
            if self.sparsity is not None or self.group_size not in (None, self.pattern.size):
                raise InputError(f"{where}: pattern {self.pattern} has its own sparsity and group size")
            return self.pattern
        if self.pattern is not None:
            raise InputError(
                f"{where}: pattern {self.pattern}, but whole groups are pruned",
                hint="give sparsity: 0.5 instead of the pattern, or use a method for 2:L patterns",
            )
        if self.sparsity is None:
            raise InputError(
                f"{where}: method {self.method} without a sparsity",
                hint="give the share of groups to prune, as sparsity: 0.5",
            )
        return GroupPattern(self.group_size or PRUNED_GROUP, self.sparsity, self.row_cap)


def describe_config(config: LinearConfig) -> dict[str, Any]:
    """A config as the fields of a recipe."""
    fields = {
        **{name: getattr(config, name) for name in LINEAR_FIELDS},
        "scheme": config.scheme and config.scheme.name,
        "pattern": config.pattern and str(config.pattern),
    }
    return {key: value for key, value in fields.items() if value is not None}


def parse_linear_config(**fields: Any) -> LinearConfig:
    """Fields of a recipe to a checked config; None means not given. InputError for an unknown name, with the nearest
    one, and for impossible values.

    bits: 4 or 8, for scheme w4a16 or w8a16. Numbers and flags may be strings.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    bits = given.pop("bits", None)
    parsed = {name: PARSERS[name](value) for name, value in given.items()}
    if bits is not None:
        by_bits = BITS[pick(str(bits), BITS, "number of bits")]
        scheme = parsed.setdefault("scheme", by_bits)
        if scheme.bits != by_bits.bits:
            raise InputError(f"scheme {scheme.name} has {scheme.bits} bits, not {bits} (--bits)")
    config = LinearConfig(**parsed)
    # Check these even without a grouped scheme here: the scheme may come from the recipe or from the source.
    size = PRUNED_GROUP if config.group_size is None else config.group_size
    W4A16.in_groups(size, symmetric=False)
    GroupPattern(size, config.sparsity or 0.0, config.row_cap)
    return config


def parse_number(value: Any, name: str, kind: type) -> Any:
    """A field of a recipe as an int or float; InputError otherwise."""
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(f"{name} is '{value}', a number was expected") from error


def parse_flag(value: str, name: str) -> bool:
    """true or false; InputError otherwise."""
    if value.lower() not in ("true", "false"):
        raise InputError(f"{name} is '{value}'", hint="true or false")
    return value.lower() == "true"


PARSERS: dict[str, Callable[[Any], Any]] = {
    "scheme": parse_scheme,
    "group_size": lambda value: parse_number(value, "group_size", int),
    "symmetric": lambda value: parse_flag(str(value), "symmetric"),
    "pattern": parse_pattern,
    "sparsity": lambda value: parse_number(value, "sparsity", float),
    "row_cap": lambda value: parse_number(value, "row_cap", float),
    "method": parse_method,
    "codes": lambda value: pick(value, CODES, "kind of codes"),
}
LINEAR_FIELDS = tuple(PARSERS)
"""The fields of a recipe that a rule may have as well, in the order in which they are written."""
