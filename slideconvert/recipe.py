"""Recipes: what is to be done to which linear. A handful of flags, or the same words in a YAML file.

    scheme: int8              # int8 | fp8 | bf16
    pattern: "2:8"            # 2:4 … 2:16 | 2:inf
    preset: balanced          # fast | balanced | quality; or, instead of one:
    method: obs               # magnitude | wanda | hessian | obs | alps; without pruning: rtn | gptq
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

from .calibrate.settings import Calibration, Preset, parse_calibration, parse_preset
from .errors import InputError, pick
from .layout import parse_layout
from .patterns import Pattern
from .prune import METHODS, parse_method
from .schemes import Scheme, parse_scheme

GIGA = 1e9
WORDS = ("scheme", "pattern", "preset", "method", "codes", "calibration", "layout", "rules")
"""The words of a recipe that say what is done, in the order in which they are written down."""
CHOICE_WORDS = ("scheme", "pattern", "method", "codes")
"""Those of them that a rule may say."""

FULL = "full"
CODES = ("ternary", FULL)
"""Which codes ternary weights may become: -1, 0 and 1 only, or all of the scheme."""


@dataclass(frozen=True)
class Choice:
    """What is to be done to one linear. None means: as the source has it (method None: prune nothing)."""

    scheme: Scheme | None = None
    pattern: Pattern | None = None
    method: str | None = None
    codes: str | None = None
    keep: bool = False


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

    preset: chooses the method where nobody else does, and how the result is trained. calibration: the text for
    calibrated methods and training. shard_bytes: largest weight file.
    """

    choice: Choice = field(default_factory=Choice)
    rules: tuple[Rule, ...] = ()
    layout: str | None = None
    preset: Preset | None = None
    calibration: Calibration = field(default_factory=Calibration)
    shard_bytes: int = 5_000_000_000

    def rule_for(self, name: str) -> Rule | None:
        """The first rule that matches the linear, None if none does."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)

    def for_linear(self, name: str) -> Choice:
        """The choice for one linear: of its rule, filled up from the recipe's own."""
        rule = self.rule_for(name)
        own = vars(rule.choice) if rule else {}
        return replace(self.choice, **{key: value for key, value in own.items() if value is not None})

    @property
    def calibrates(self) -> bool:
        """Whether any of its choices may need calibration text."""
        methods = [choice.method for choice in (self.choice, *(rule.choice for rule in self.rules)) if choice.method]
        return self.preset is not None or any(METHODS[method].calibrated for method in methods)

    def describe(self) -> dict[str, Any]:
        """The recipe as the words of its file, without what is not chosen."""
        layout = {"layout": self.layout} if self.layout else {}
        preset = {"preset": self.preset.name} if self.preset else {}
        calibration = {"calibration": self.calibration.describe()} if self.calibrates else {}
        rules = {"rules": [rule.describe() for rule in self.rules]} if self.rules else {}
        return {**describe_choice(self.choice), **preset, **calibration, **layout, **rules}


def describe_choice(choice: Choice) -> dict[str, Any]:
    """A choice as the words of a recipe."""
    words = {
        "scheme": choice.scheme and choice.scheme.name,
        "pattern": choice.pattern and str(choice.pattern),
        "method": choice.method,
        "codes": choice.codes,
    }
    return {key: value for key, value in words.items() if value is not None}


def make_choice(
    scheme: str | None = None, pattern: str | None = None, method: str | None = None, codes: str | None = None
) -> Choice:
    """Words to a checked choice. InputError names the nearest word for an unknown one."""
    return Choice(
        scheme=parse_scheme(scheme) if scheme else None,
        pattern=Pattern.parse(pattern) if pattern else None,
        method=parse_method(method) if method else None,
        codes=pick(codes, CODES, "kind of codes") if codes else None,
    )


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
    _check_words(words, {"shard_gb", *WORDS}, where)
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
        choice=make_choice(*(words.get(word) for word in CHOICE_WORDS)),
        rules=tuple(_parse_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1)),
        layout=parse_layout(layout) if layout else None,
        preset=parse_preset(preset) if preset else None,
        calibration=parse_calibration(words.get("calibration", {}), where),
        shard_bytes=shard_bytes,
    )


def _parse_rule(words: Any, where: str) -> Rule:
    _check_words(words, {"match", "keep", *CHOICE_WORDS}, where)
    if "match" not in words:
        raise InputError(f"{where}: no match", hint="say which linears it is for, as match: '*.down_proj'")
    keep = words.get("keep", "false").lower()
    if keep not in ("true", "false"):
        raise InputError(f"{where}: keep is '{keep}'", hint="true or false")
    choice = make_choice(*(words.get(word) for word in CHOICE_WORDS))
    if keep == "true" and describe_choice(choice):
        raise InputError(f"{where}: keep leaves the linear alone, so nothing else can be asked of it")
    return Rule(words["match"], replace(choice, keep=keep == "true"))


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
