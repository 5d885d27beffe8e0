"""What is to be done to one linear: the words of a recipe that a rule may say as well, checked and made sense of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.choices import CODES
from ..core.patterns import GroupPattern, Pattern, parse_pattern
from ..core.schemes import W4A16, W8A16, Scheme, no_groups, parse_scheme
from ..errors import InputError, pick
from ..prune import METHODS, parse_method

LINEAR_FIELDS = ("scheme", "group_size", "symmetric", "pattern", "sparsity", "row_cap", "method", "codes")
"""The words of a recipe that a rule may say as well."""
PRUNED_GROUP = 16
"""Group size unless said otherwise where whole groups go: GQSA's own."""
BITS = {"4": W4A16, "8": W8A16}
"""`bits` as another word for a scheme."""


@dataclass(frozen=True)
class LinearConfig:
    """What is to be done to one linear. None means: as the source has it (method None: prune nothing)."""

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
    def takes_groups(self) -> bool:
        """Whether whole groups go, by the sparsity, the method or the pattern."""
        by_method = self.method is not None and METHODS[self.method].whole_groups
        by_pattern = self.pattern is not None and self.pattern.whole_groups
        return self.sparsity is not None or by_method or by_pattern

    @property
    def by_groups(self) -> bool:
        """Whether groups of weights share a scale or go together."""
        return self.takes_groups or (self.scheme is not None and self.scheme.grouped)

    def resolved(self, where: str) -> LinearConfig:
        """The same with the group size in the scheme, and sparsity and row cap as a pattern. InputError, which names
        `where`, for words that contradict each other."""
        scheme, pattern, size = self.scheme, self.pattern, self.group_size
        if self.takes_groups:
            pattern, size = self._group_pattern(where)
            if scheme and scheme.quantized and not scheme.grouped:
                raise InputError(
                    f"{where}: whole groups are pruned, but scheme {scheme.name} has no groups",
                    hint="use w4a16, w4a8 or w8a16 (or bf16, to prune only)",
                )
        elif self.row_cap is not None:
            raise InputError(f"{where}: row_cap without sparsity", hint="only whole groups are counted by row")
        if scheme and (scheme.grouped or not self.takes_groups):
            scheme = scheme.resized(size, self.symmetric, where)
        elif not self.takes_groups and (self.group_size is not None or self.symmetric is not None):
            raise no_groups("group_size" if self.group_size is not None else "symmetric", "of the source", where)
        return replace(self, scheme=scheme, pattern=pattern)

    def _group_pattern(self, where: str) -> tuple[GroupPattern, int]:
        if self.method and not METHODS[self.method].whole_groups and METHODS[self.method].prunes:
            raise InputError(
                f"{where}: method {self.method} prunes 2:L patterns, not whole groups", hint="use gqsa or saliency"
            )
        if isinstance(self.pattern, GroupPattern):
            if self.sparsity is not None or self.group_size not in (None, self.pattern.size):
                raise InputError(f"{where}: pattern {self.pattern} says sparsity and group size already")
            return self.pattern, self.pattern.size
        if self.pattern is not None:
            raise InputError(
                f"{where}: pattern {self.pattern}, but whole groups are pruned",
                hint="leave the pattern out and say sparsity: 0.5, or use a method for 2:L patterns",
            )
        if self.sparsity is None:
            raise InputError(f"{where}: method {self.method} without a sparsity", hint="say which share of groups goes")
        size = self.group_size or PRUNED_GROUP
        return GroupPattern(size, self.sparsity, self.row_cap), size


def describe_config(config: LinearConfig) -> dict[str, Any]:
    """A config as the words of a recipe."""
    words = {
        **{word: getattr(config, word) for word in LINEAR_FIELDS},
        "scheme": config.scheme and config.scheme.name,
        "pattern": config.pattern and str(config.pattern),
    }
    return {key: value for key, value in words.items() if value is not None}


def parse_linear_config(
    *,
    scheme: str | None = None,
    bits: str | None = None,
    group_size: str | int | None = None,
    symmetric: str | bool | None = None,
    pattern: str | None = None,
    sparsity: str | float | None = None,
    row_cap: str | float | None = None,
    method: str | None = None,
    codes: str | None = None,
) -> LinearConfig:
    """Words to a checked config. InputError names the nearest word for an unknown one.

    bits: 4 or 8, the weight-only schemes of that name.
    """
    found = parse_scheme(scheme) if scheme else None
    if bits is not None:
        by_bits = BITS[pick(str(bits), BITS, "number of bits")]
        if found and found.bits != by_bits.bits:
            raise InputError(f"scheme {found.name} has {found.bits} bits, --bits {bits} are asked for")
        found = found or by_bits
    config = LinearConfig(
        scheme=found,
        group_size=None if group_size is None else parse_number(group_size, "group_size", int),
        symmetric=None if symmetric is None else parse_flag(str(symmetric), "symmetric"),
        pattern=parse_pattern(pattern) if pattern else None,
        sparsity=None if sparsity is None else parse_number(sparsity, "sparsity", float),
        row_cap=None if row_cap is None else parse_number(row_cap, "row_cap", float),
        method=parse_method(method) if method else None,
        codes=pick(codes, CODES, "kind of codes") if codes else None,
    )
    # Whatever else is chosen, these must be possible; a scheme of the right kind may come from elsewhere.
    size = PRUNED_GROUP if config.group_size is None else config.group_size
    W4A16.in_groups(size, symmetric=False)
    GroupPattern(size, config.sparsity or 0.0, config.row_cap)
    return config


def parse_number(value: Any, word: str, kind: type) -> Any:
    """A word of a recipe as an int or float; InputError otherwise."""
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(f"{word} is '{value}', a number was expected") from error


def parse_flag(value: str, word: str) -> bool:
    """true or false; InputError otherwise."""
    if value.lower() not in ("true", "false"):
        raise InputError(f"{word} is '{value}'", hint="true or false")
    return value.lower() == "true"
