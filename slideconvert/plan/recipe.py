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

What a rule does not say it takes from the recipe. A config that nobody makes (None) stays as the source has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import InputError, pick
from ..formats.registry import parse_layout
from ..prune import METHODS
from .linear_config import LINEAR_FIELDS, LinearConfig, describe_config, parse_flag, parse_linear_config, parse_number
from .presets import Calibration, Preset, Recovery, parse_calibration, parse_preset

GIGA = 1e9
EPOCHS = ("block_epochs", "end_epochs")
WORDS = (*LINEAR_FIELDS, "preset", *EPOCHS, "calibration", "layout", "rules")
"""The words of a recipe that say what is done, in the order in which they are written down."""


@dataclass(frozen=True)
class Rule:
    """Choices for the linears whose module name matches; keep leaves them byte for byte as they are."""

    match: str
    config: LinearConfig

    def describe(self) -> dict[str, Any]:
        if self.config.keep:
            return {"match": self.match, "keep": True}
        return {"match": self.match, **describe_config(self.config)}


@dataclass(frozen=True)
class Recipe:
    """The choices for all linears, the rules that differ from them, and the layout of the output.

    preset: chooses the method where nobody else does, and how the result is trained. block_epochs, end_epochs: of
    training, None: the preset's. calibration: the text for calibrated methods and training. shard_bytes: largest weight
    file.
    """

    config: LinearConfig = field(default_factory=LinearConfig)
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

    def for_linear(self, name: str) -> LinearConfig:
        """The config for one linear: of its rule, filled up from the recipe's own."""
        rule = self.rule_for(name)
        own = vars(rule.config) if rule else {}
        said = {key: value for key, value in own.items() if value is not None}
        general = self.config
        if "pattern" in said and not said["pattern"].whole_groups:  # of the other kind than the recipe's
            general = replace(general, sparsity=None, row_cap=None)
        elif "sparsity" in said or "pattern" in said:
            general = replace(general, pattern=None)
        config = replace(general, **said)
        if "scheme" in said and not config.by_groups:  # the recipe's words for groups are not meant for this linear
            config = replace(config, group_size=said.get("group_size"), symmetric=said.get("symmetric"))
        return config

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
        methods = [config.method for config in (self.config, *(rule.config for rule in self.rules)) if config.method]
        return self.preset is not None or any(METHODS[method].calibrated for method in methods)

    def describe(self) -> dict[str, Any]:
        """The recipe as the words of its file, without what is not chosen."""
        layout = {"layout": self.layout} if self.layout else {}
        preset: dict[str, Any] = {"preset": self.preset.name} if self.preset else {}
        preset |= {word: getattr(self, word) for word in EPOCHS if getattr(self, word) is not None}
        calibration = {"calibration": self.calibration.describe()} if self.calibrates else {}
        rules = {"rules": [rule.describe() for rule in self.rules]} if self.rules else {}
        return {**describe_config(self.config), **preset, **calibration, **layout, **rules}


def bundled_recipes() -> dict[str, Path]:
    """The recipes that come with slideconvert, by name: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    folder = next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe: a file, or the bundled one of that name. InputError for anything that is not understood,
    with the nearest word."""
    import yaml

    if not path.suffix and path.parent == Path() and not path.exists():
        path = bundled_recipes()[pick(path.name, bundled_recipes(), "recipe")]
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
        config=parse_linear_config(**{word: words.get(word) for word in ("bits", *LINEAR_FIELDS)}),
        rules=tuple(_parse_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1)),
        layout=parse_layout(layout) if layout else None,
        preset=parse_preset(preset) if preset else None,
        **{word: _epochs(words[word], word) for word in EPOCHS if word in words},
        calibration=parse_calibration(words.get("calibration", {}), where),
        shard_bytes=shard_bytes,
    )


def _epochs(value: str, word: str) -> int:
    count: int = parse_number(value, word, int)
    if count < 0:
        raise InputError(f"{word} is {value}, it cannot be negative")
    return count


def _parse_rule(words: Any, where: str) -> Rule:
    _check_words(words, {"match", "keep", "bits", *LINEAR_FIELDS}, where)
    if "match" not in words:
        raise InputError(f"{where}: no match", hint="say which linears it is for, as match: '*.down_proj'")
    keep = parse_flag(words.get("keep", "false"), f"{where}: keep")
    config = parse_linear_config(**{word: words.get(word) for word in ("bits", *LINEAR_FIELDS)})
    if keep and describe_config(config):
        raise InputError(f"{where}: keep leaves the linear alone, so nothing else can be asked of it")
    return Rule(words["match"], replace(config, keep=keep))


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
