"""Recipes: how each linear is converted. A recipe comes from command-line options or from a YAML file with fields:

    scheme: int8              # int8 | fp8 | w4a16 | w4a8 | w8a16 | bf16
    group_size: 16            # 4 … 128; of w4a16, w4a8 and w8a16
    symmetric: false          # true: no zero points; of the same
    pattern: "2:8"            # 2:4 … 2:16 | 2:inf; or, to prune whole groups of that size:
    sparsity: 0.5             # the share of groups to prune
    row_cap: 1.5              # no row keeps more than this many times the mean number
    preset: balanced          # fast | balanced | quality | paper; or, instead of one:
    method: obs               # magnitude | wanda | hessian | obs | alps; of groups: gqsa | saliency; without pruning:
                              # rtn | gptq
    block_epochs: 3           # epochs of training block by block, and end to end, instead of the preset's
    end_epochs: 2
    generated: 384            # sequences that the source model generates for training, instead of the preset's number
    smooth: false             # true (the default): move channel scales from inputs of 8-bit integers into the weights
    codes: ternary            # ternary | full; for models trained with ternary weights (BitNet)
    calibration: {text: calibration.jsonl, samples: 128, length: 2048, seed: 0}
                              # or text: [a.jsonl, b.jsonl], weights: [2, 1], column: messages
    layout: slide             # slide | gqs | dense
    rules:                    # by module name, * and ? as wildcards; the first match wins
      - {match: "*.layers.0.*", keep: true}
      - {match: "*.down_proj", pattern: "2:6"}

A rule inherits the fields that it lacks from the recipe. A field that neither sets (None) stays as in the source.
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
from .bundled import find_recipe
from .calibration import FIELDS as CALIBRATION
from .calibration import Calibration, parse_calibration
from .linear_config import LINEAR_FIELDS, LinearConfig, describe_config, parse_flag, parse_linear_config, parse_number
from .presets import Preset, Recovery, parse_preset

GIGA = 1e9
EPOCHS = ("block_epochs", "end_epochs")
TRAINING = (*EPOCHS, "generated")
SMOOTH = "smooth"
FIELDS = (*LINEAR_FIELDS, "preset", *TRAINING, SMOOTH, "calibration", "layout", "rules")
"""The fields of a recipe that records keep, in the order in which they are written."""


@dataclass(frozen=True)
class Rule:
    """The config of the linears whose module name matches the wildcard `match`."""

    match: str
    config: LinearConfig

    def describe(self) -> dict[str, Any]:
        """The rule as fields of a recipe."""
        if self.config.keep:
            return {"match": self.match, "keep": True}
        return {"match": self.match, **describe_config(self.config)}


@dataclass(frozen=True)
class Recipe:
    """The config of all linears, the rules that override it, and the layout of the output (None: that of the source).

    preset: determines the method where neither config nor rule names one, and the training. block_epochs, end_epochs,
    generated (sequences that the source model adds to the calibration text): None for those of the preset. smooth:
    whether calibrated conversions smooth inputs of 8-bit integers; None as true. calibration: the text for calibrated
    methods and training. shard_bytes: maximum size of a weight file in bytes.
    """

    config: LinearConfig = field(default_factory=LinearConfig)
    rules: tuple[Rule, ...] = ()
    layout: str | None = None
    preset: Preset | None = None
    block_epochs: int | None = None
    end_epochs: int | None = None
    generated: int | None = None
    smooth: bool | None = None
    calibration: Calibration = field(default_factory=Calibration)
    shard_bytes: int = 5_000_000_000

    def rule_for(self, name: str) -> Rule | None:
        """The first rule that matches the linear's module name; None if no rule does."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)

    def for_linear(self, name: str) -> LinearConfig:
        """The config for one linear: the fields of its rule, and those of the recipe for all others."""
        rule = self.rule_for(name)
        own = vars(rule.config) if rule else {}
        explicit = {key: value for key, value in own.items() if value is not None}
        general = self.config
        if "pattern" in explicit and not explicit["pattern"].whole_groups:  # a 2:L pattern replaces a sparsity
            general = replace(general, sparsity=None, row_cap=None)
        elif "sparsity" in explicit or "pattern" in explicit:
            general = replace(general, pattern=None)
        config = replace(general, **explicit)
        if "scheme" in explicit and not config.by_groups:  # the recipe's fields for groups are not for this linear
            config = replace(config, group_size=explicit.get("group_size"), symmetric=explicit.get("symmetric"))
        return config

    def recovery(self, *, groups: bool) -> Recovery | None:
        """How the remaining weights are trained; None if they are not. groups: whether some groups of weights share a
        scale or are pruned together."""
        if not self.preset:
            return None
        found = self.preset.group_recovery if groups else self.preset.recovery
        epochs = {name: value for name, value in self._training.items() if name in EPOCHS}
        found = replace(found, **epochs)
        return found if found.trains else None

    @property
    def _training(self) -> dict[str, Any]:
        """The fields of the training that the recipe sets."""
        return {name: getattr(self, name) for name in TRAINING if getattr(self, name) is not None}

    @property
    def calibrates(self) -> bool:
        """Whether a method of the recipe, or one that the preset may choose, needs calibration text."""
        methods = [config.method for config in (self.config, *(rule.config for rule in self.rules)) if config.method]
        return self.preset is not None or any(METHODS[method].calibrated for method in methods)

    def describe(self) -> dict[str, Any]:
        """The recipe as the fields of its file, without those that are not set."""
        layout = {"layout": self.layout} if self.layout else {}
        preset: dict[str, Any] = {"preset": self.preset.name} if self.preset else {}
        preset |= self._training | ({} if self.smooth is None else {SMOOTH: self.smooth})
        calibration = {"calibration": self.calibration.describe()} if self.calibrates else {}
        rules = {"rules": [rule.describe() for rule in self.rules]} if self.rules else {}
        return {**describe_config(self.config), **preset, **calibration, **layout, **rules}


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe: a file, or the bundled recipe of that name. InputError if it cannot be read, or for an
    unknown name, with the nearest one."""
    import yaml

    if not path.suffix and path.parent == Path() and not path.exists():
        path = find_recipe(path.name)
    try:
        # Every scalar as a string: YAML itself would read 2:8 as 128 (base 60) and 2_8 as 28.
        fields = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror}", hint="give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"recipe {path}: not valid YAML ({error})".replace("\n", " ")) from error
    except RecursionError as error:
        raise InputError(f"recipe {path}: nested too deeply", hint="a recipe is a list of fields") from error
    return parse_recipe(fields, str(path))


def recipe_text(recipe: Recipe, comments: Sequence[str]) -> str:
    """The inverse of load_recipe: the comment lines, then the recipe as YAML."""
    import yaml

    fields: dict[str, Any] = recipe.describe()
    rules = fields.pop("rules", [])
    if recipe.calibration != Calibration():
        fields["calibration"] = recipe.calibration.describe()
    if recipe.shard_bytes != Recipe().shard_bytes:
        fields["shard_gb"] = _gigabytes(recipe.shard_bytes)
    fields["rules"] = rules
    # Collections of scalars are written in one line each, whatever its length.
    body = yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
    return "".join(f"# {line}\n" for line in comments) + body


def _gigabytes(count: int) -> float:
    """Bytes as the number of gigabytes that a recipe reads back as the same number of bytes: the quotient itself may
    round down to one byte less."""
    quotient = count / GIGA
    return quotient if int(quotient * GIGA) == count else math.nextafter(quotient, math.inf)


def parse_recipe(fields: Any, where: str) -> Recipe:
    """The parsed YAML (all scalars strings) to a Recipe. InputError, which names `where`, for invalid fields."""
    _check_fields(fields, {"shard_gb", "bits", *FIELDS}, where)
    rules = fields.get("rules", [])
    if not isinstance(rules, list):
        raise InputError(f"{where}: rules must be a list", hint="- {match: '*.down_proj', pattern: '2:6'}")
    shard_gb = fields.get("shard_gb", "5")
    try:
        shard_bytes = int(float(shard_gb) * GIGA)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: shard_gb is '{shard_gb}', a number was expected") from error
    if shard_bytes < 1:
        raise InputError(f"{where}: shard_gb is '{shard_gb}', it must be positive")
    layout, preset = fields.get("layout"), fields.get("preset")
    return Recipe(
        config=parse_linear_config(**{name: fields.get(name) for name in ("bits", *LINEAR_FIELDS)}),
        rules=tuple(_parse_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1)),
        layout=parse_layout(layout) if layout else None,
        preset=parse_preset(preset) if preset else None,
        **{name: _count(fields[name], name) for name in TRAINING if name in fields},
        smooth=parse_flag(fields[SMOOTH], f"{where}: {SMOOTH}") if SMOOTH in fields else None,
        calibration=parse_calibration(fields.get("calibration", {}), where),
        shard_bytes=shard_bytes,
    )


def _count(value: str, name: str) -> int:
    count: int = parse_number(value, name, int)
    if count < 0:
        raise InputError(f"{name} is {value}, it cannot be negative")
    return count


def _parse_rule(fields: Any, where: str) -> Rule:
    _check_fields(fields, {"match", "keep", "bits", *LINEAR_FIELDS}, where)
    if "match" not in fields:
        raise InputError(f"{where}: no match", hint="name the linears, such as match: '*.down_proj'")
    keep = parse_flag(fields.get("keep", "false"), f"{where}: keep")
    config = parse_linear_config(**{name: fields.get(name) for name in ("bits", *LINEAR_FIELDS)})
    if keep and describe_config(config):
        raise InputError(f"{where}: keep copies the linear unchanged, so no other field has an effect")
    return Rule(fields["match"], replace(config, keep=keep))


def _check_fields(fields: Any, known: set[str], where: str) -> None:
    if not isinstance(fields, dict):
        raise InputError(f"{where}: 'field: value' lines were expected")
    for name, value in fields.items():
        pick(name, sorted(known), f"field in {where}:")
        if name == "calibration":
            _check_fields(value, set(CALIBRATION), f"{where}, calibration")
        elif not isinstance(value, str) and name not in ("rules", "text", "weights"):
            raise InputError(f"{where}: {name} must be a single value")
        if value == "":
            raise InputError(f"{where}: {name} has no value", hint="give one, or omit the line")
