"""Recipes: what is to be done to which linear. A handful of flags, or the same words in a YAML file.

    scheme: int8              # int8 | fp8 | w4a16 | w4a8 | w8a16 | bf16
    group_size: 16            # 4 … 128; of w4a16, w4a8 and w8a16
    symmetric: false          # true: no zero points; of the same
    pattern: "2:8"            # 2:4 … 2:16 | 2:inf; or, to take whole groups of that size:
    sparsity: 0.5             # the share of groups that go
    row_cap: 1.5              # no row keeps more than so many times the mean
    preset: balanced          # fast | balanced | quality | paper; or, instead of one:
    method: obs               # magnitude | wanda | hessian | obs | alps; of groups: gqsa | saliency; without pruning:
                              # rtn | gptq
    block_epochs: 3           # of training block by block, and end to end, instead of the preset's
    end_epochs: 2
    codes: ternary            # ternary | full; of models trained with ternary weights (BitNet)
    calibration: {text: calibration.jsonl, samples: 128, length: 2048, seed: 0}
    layout: slide             # slide | dense
    rules:                    # by module name, * and ? as wildcards; the first match wins
      - {match: "*.layers.0.*", keep: true}
      - {match: "*.down_proj", pattern: "2:6"}

What a rule does not say it takes from the recipe. A choice that nobody makes (None) stays as the source has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .calibrate.settings import Calibration, Preset, Recovery, parse_calibration, parse_preset
from .errors import InputError, pick
from .layout import parse_layout
from .patterns import AnyPattern, GroupPattern, parse_pattern
from .prune import METHODS, parse_method
from .schemes import GROUP, SCHEMES, W4A16, W8A16, Scheme, parse_scheme

GIGA = 1e9
CHOICE_WORDS = ("scheme", "group_size", "symmetric", "pattern", "sparsity", "row_cap", "method", "codes")
"""The words of a recipe that a rule may say as well."""
EPOCHS = ("block_epochs", "end_epochs")
WORDS = (*CHOICE_WORDS, "preset", *EPOCHS, "calibration", "layout", "rules")
"""The words of a recipe that say what is done, in the order in which they are written down."""
PRUNED_GROUP = 16
"""Group size unless said otherwise where whole groups go: GQSA's own."""
BITS = {"4": W4A16, "8": W8A16}
"""`bits` as another word for a scheme."""

FULL = "full"
CODES = ("ternary", FULL)
"""Which codes ternary weights may become: -1, 0 and 1 only, or all of the scheme."""


@dataclass(frozen=True)
class Choice:
    """What is to be done to one linear. None means: as the source has it (method None: prune nothing)."""

    scheme: Scheme | None = None
    pattern: AnyPattern | None = None
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
        by_method = self.method is not None and METHODS[self.method].grouped
        return self.sparsity is not None or by_method or isinstance(self.pattern, GroupPattern)

    @property
    def by_groups(self) -> bool:
        """Whether groups of weights share a scale or go together."""
        return self.takes_groups or (self.scheme is not None and self.scheme.grouped)

    def resolved(self, where: str) -> Choice:
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
        if scheme and scheme.grouped:
            scheme = scheme.in_groups(size or GROUP, symmetric=bool(self.symmetric))
        elif not self.takes_groups and (self.group_size is not None or self.symmetric is not None):
            words = "group_size" if self.group_size is not None else "symmetric"
            raise InputError(
                f"{where}: {words}, but scheme {scheme.name if scheme else 'of the source'} has no groups",
                hint="use w4a16, w4a8 or w8a16, or leave it out",
            )
        return replace(self, scheme=scheme, pattern=pattern)

    def _group_pattern(self, where: str) -> tuple[GroupPattern, int]:
        if self.method and not METHODS[self.method].grouped and METHODS[self.method].prunes:
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


@dataclass(frozen=True)
class Rule:
    """Choices for the linears whose module name matches; keep leaves them byte for byte as they are."""

    match: str
    choice: Choice

    def describe(self) -> dict[str, Any]:
        if self.choice.keep:
            return {"match": self.match, "keep": True}
        return {"match": self.match, **describe_choice(self.choice)}


@dataclass(frozen=True)
class Recipe:
    """The choices for all linears, the rules that differ from them, and the layout of the output.

    preset: chooses the method where nobody else does, and how the result is trained. block_epochs, end_epochs: of
    training, None: the preset's. calibration: the text for calibrated methods and training. shard_bytes: largest weight
    file.
    """

    choice: Choice = field(default_factory=Choice)
    rules: tuple[Rule, ...] = ()
    layout: str | None = None
    preset: Preset | None = None
    block_epochs: int | None = None
    end_epochs: int | None = None
    calibration: Calibration = field(default_factory=Calibration)
    shard_bytes: int = 5_000_000_000

    def rule_for(self, name: str) -> Rule | None:
        """The first rule that matches the linear, None if none does."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)

    def for_linear(self, name: str) -> Choice:
        """The choice for one linear: of its rule, filled up from the recipe's own."""
        rule = self.rule_for(name)
        own = vars(rule.choice) if rule else {}
        said = {key: value for key, value in own.items() if value is not None}
        general = self.choice
        if "pattern" in said and not isinstance(said["pattern"], GroupPattern):  # of the other kind than the recipe's
            general = replace(general, sparsity=None, row_cap=None)
        elif "sparsity" in said or isinstance(said.get("pattern"), GroupPattern):
            general = replace(general, pattern=None)
        choice = replace(general, **said)
        if "scheme" in said and not choice.by_groups:  # the recipe's words for groups are not meant for this linear
            choice = replace(choice, group_size=said.get("group_size"), symmetric=said.get("symmetric"))
        return choice

    def recovery(self, *, groups: bool) -> Recovery | None:
        """How what is left is trained, None if it is not. groups: whether groups of weights share a scale or have gone
        together."""
        if not self.preset:
            return None
        found = self.preset.group_recovery if groups else self.preset.recovery
        epochs = {word: getattr(self, word) for word in EPOCHS if getattr(self, word) is not None}
        found = replace(found, **epochs)
        return found if found.trains else None

    @property
    def calibrates(self) -> bool:
        """Whether any of its choices may need calibration text."""
        methods = [choice.method for choice in (self.choice, *(rule.choice for rule in self.rules)) if choice.method]
        return self.preset is not None or any(METHODS[method].calibrated for method in methods)

    def describe(self) -> dict[str, Any]:
        """The recipe as the words of its file, without what is not chosen."""
        layout = {"layout": self.layout} if self.layout else {}
        preset: dict[str, Any] = {"preset": self.preset.name} if self.preset else {}
        preset |= {word: getattr(self, word) for word in EPOCHS if getattr(self, word) is not None}
        calibration = {"calibration": self.calibration.describe()} if self.calibrates else {}
        rules = {"rules": [rule.describe() for rule in self.rules]} if self.rules else {}
        return {**describe_choice(self.choice), **preset, **calibration, **layout, **rules}


def describe_choice(choice: Choice) -> dict[str, Any]:
    """A choice as the words of a recipe."""
    words = {
        **{word: getattr(choice, word) for word in CHOICE_WORDS},
        "scheme": choice.scheme and choice.scheme.name,
        "pattern": choice.pattern and str(choice.pattern),
    }
    return {key: value for key, value in words.items() if value is not None}


def make_choice(
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
) -> Choice:
    """Words to a checked choice. InputError names the nearest word for an unknown one.

    bits: 4 or 8, the weight-only schemes of that name.
    """
    found = parse_scheme(scheme) if scheme else None
    if bits is not None:
        by_bits = BITS[pick(str(bits), BITS, "number of bits")]
        if found and found.bits != by_bits.bits:
            raise InputError(f"scheme {found.name} has {found.bits} bits, --bits {bits} are asked for")
        found = found or by_bits
    choice = Choice(
        scheme=found,
        group_size=None if group_size is None else _number(group_size, "group_size", int),
        symmetric=None if symmetric is None else _flag(str(symmetric), "symmetric"),
        pattern=parse_pattern(pattern) if pattern else None,
        sparsity=None if sparsity is None else _number(sparsity, "sparsity", float),
        row_cap=None if row_cap is None else _number(row_cap, "row_cap", float),
        method=parse_method(method) if method else None,
        codes=pick(codes, CODES, "kind of codes") if codes else None,
    )
    # Whatever else is chosen, these must be possible; a scheme of the right kind may come from elsewhere.
    size = PRUNED_GROUP if choice.group_size is None else choice.group_size
    SCHEMES[W4A16.name].in_groups(size, symmetric=False)
    GroupPattern(size, choice.sparsity or 0.0, choice.row_cap)
    return choice


def _number(value: Any, word: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(f"{word} is '{value}', a number was expected") from error


def _flag(value: str, word: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise InputError(f"{word} is '{value}'", hint="true or false")
    return value.lower() == "true"


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe. InputError for anything that is not understood, with the nearest word."""
    import yaml

    try:
        # Every scalar as a string: YAML itself would read 2:8 as 128 (base 60) and 2_8 as 28.
        words = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror}", hint="give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: not valid YAML ({error})".replace("\n", " ")) from error
    return parse_recipe(words, str(path))


def recipe_text(recipe: Recipe, comments: Sequence[str]) -> str:
    """The inverse of load_recipe: a recipe as YAML below lines of comments."""
    import yaml

    words: dict[str, Any] = recipe.describe()
    rules = words.pop("rules", [])
    if recipe.calibration != Calibration():
        words["calibration"] = recipe.calibration.describe()
    if recipe.shard_bytes != Recipe().shard_bytes:
        words["shard_gb"] = _gigabytes(recipe.shard_bytes)
    words["rules"] = rules
    # Collections of plain words are written in one line each, whatever its length.
    body = yaml.safe_dump(words, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
    return "".join(f"# {line}\n" for line in comments) + body


def _gigabytes(count: int) -> float:
    """The number from which a recipe gets these bytes back: the quotient itself may fall short of the last."""
    quotient = count / GIGA
    return quotient if int(quotient * GIGA) == count else math.nextafter(quotient, math.inf)


def parse_recipe(words: Any, where: str) -> Recipe:
    """The parsed YAML (all scalars strings) to a Recipe."""
    _check_words(words, {"shard_gb", "bits", *WORDS}, where)
    rules = words.get("rules", [])
    if not isinstance(rules, list):
        raise InputError(f"{where}: rules must be a list", hint="- {match: '*.down_proj', pattern: '2:6'}")
    shard_gb = words.get("shard_gb", "5")
    try:
        shard_bytes = int(float(shard_gb) * GIGA)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: shard_gb is '{shard_gb}', a number was expected") from error
    if shard_bytes < 1:
        raise InputError(f"{where}: shard_gb is '{shard_gb}', it must be positive")
    layout, preset = words.get("layout"), words.get("preset")
    return Recipe(
        choice=make_choice(**{word: words.get(word) for word in ("bits", *CHOICE_WORDS)}),
        rules=tuple(_parse_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1)),
        layout=parse_layout(layout) if layout else None,
        preset=parse_preset(preset) if preset else None,
        **{word: _epochs(words[word], word) for word in EPOCHS if word in words},
        calibration=parse_calibration(words.get("calibration", {}), where),
        shard_bytes=shard_bytes,
    )


def _epochs(value: str, word: str) -> int:
    count: int = _number(value, word, int)
    if count < 0:
        raise InputError(f"{word} is {value}, it cannot be negative")
    return count


def _parse_rule(words: Any, where: str) -> Rule:
    _check_words(words, {"match", "keep", "bits", *CHOICE_WORDS}, where)
    if "match" not in words:
        raise InputError(f"{where}: no match", hint="say which linears it is for, as match: '*.down_proj'")
    keep = _flag(words.get("keep", "false"), f"{where}: keep")
    choice = make_choice(**{word: words.get(word) for word in ("bits", *CHOICE_WORDS)})
    if keep and describe_choice(choice):
        raise InputError(f"{where}: keep leaves the linear alone, so nothing else can be asked of it")
    return Rule(words["match"], replace(choice, keep=keep))


def _check_words(words: Any, known: set[str], where: str) -> None:
    if not isinstance(words, dict):
        raise InputError(f"{where}: 'word: value' lines were expected")
    for word, value in words.items():
        pick(word, sorted(known), f"word in {where}:")
        if word == "calibration":
            _check_words(value, {"text", "samples", "length", "seed"}, f"{where}, calibration")
        elif not isinstance(value, str) and word != "rules":
            raise InputError(f"{where}: {word} must be a single word")
        if value == "":
            raise InputError(f"{where}: {word} has no value", hint="say what it is, or leave the line out")
