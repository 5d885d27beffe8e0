"""Options to a recipe: a recipe file, overridden by explicit options, completed with defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.choices import INT8, PRUNING, ROUNDING, RTN, W4A16
from ..errors import InputError, pick
from ..formats.registry import usual_layout
from ..formats.slide import Slide
from ..plan.calibration import Calibration, check_mixture, parse_calibration
from ..plan.linear_config import LINEAR_FIELDS, LinearConfig, describe_config, parse_linear_config
from ..plan.presets import parse_preset
from ..plan.recipe import SMOOTH, TRAINING, Recipe, load_recipe, parse_recipe
from ..prune import METHODS
from ..runtime.slidesparse_record import DENSE
from ..texts.named import Text, text_of
from .options import CalibrationOptions, CalibrationTexts, Options, PatternOptions, QuantizeOptions, SparsifyOptions

BLOCK_DEFAULTS = {"scheme": INT8, "pattern": "2:8"}
GROUP_DEFAULTS = {"scheme": W4A16, "sparsity": 0.5}
"""The defaults of a conversion to a 2:L pattern, and to a pattern of groups."""
PRESET = "balanced"
RECIPE_FIELDS = ("bits", *LINEAR_FIELDS, "preset", *TRAINING, SMOOTH, "layout", "shard_gb")
"""Options that are fields of a recipe under the same name."""

Defaults = tuple[dict[str, Any], dict[str, Any]]


def recipe_of(options: Options, *, defaults: Defaults = (BLOCK_DEFAULTS, GROUP_DEFAULTS)) -> Recipe:
    """The recipe file of the options if there is one, overridden by the other options, completed with defaults.

    defaults: fields for 2:L patterns, and for patterns of groups. InputError for options that are invalid or
    contradict each other.
    """
    path = getattr(options, "recipe", None)
    recipe = load_recipe(path) if path else Recipe()
    given = {name: str(value) for name in RECIPE_FIELDS if (value := getattr(options, name, None)) is not None}
    explicit = parse_recipe(given, "options")
    chosen = {**_compatible(recipe.config, explicit.config), **describe_config(explicit.config)}
    groups = parse_linear_config(**chosen).whole_groups
    pattern = explicit.config.pattern or recipe.config.pattern
    if pattern and pattern.whole_groups:
        defaults = ({}, {name: value for name, value in defaults[1].items() if name != "sparsity"})
    config = parse_linear_config(**{**defaults[groups], **chosen})
    without_preset = bool(config.method) and not groups  # a method for groups comes with the preset's training
    return replace(
        recipe,
        config=config,
        preset=explicit.preset or recipe.preset or (None if without_preset else parse_preset(PRESET)),
        block_epochs=recipe.block_epochs if explicit.block_epochs is None else explicit.block_epochs,
        end_epochs=recipe.end_epochs if explicit.end_epochs is None else explicit.end_epochs,
        generated=recipe.generated if explicit.generated is None else explicit.generated,
        smooth=recipe.smooth if explicit.smooth is None else explicit.smooth,
        calibration=calibration_of(options, recipe.calibration),
        layout=explicit.layout or recipe.layout or _usual_layout([config, *(rule.config for rule in recipe.rules)]),
        shard_bytes=explicit.shard_bytes if "shard_gb" in given else recipe.shard_bytes,
    )


def sparsify_recipe(options: SparsifyOptions) -> Recipe:
    """The recipe of `sparsify`, which keeps the number scheme of the source."""
    if options.method:
        pick(options.method, PRUNING, "pruning method")
    return replace(recipe_of(options, defaults=({"pattern": "2:8"}, {"sparsity": 0.5})), layout=DENSE)


def quantize_recipe(options: QuantizeOptions) -> Recipe:
    """The recipe of `quantize`, which keeps the pattern of the source."""
    method = options.method or RTN
    pick(method, ROUNDING, "quantization method")
    scheme = options.scheme or (None if options.bits else INT8)
    config = parse_linear_config(
        scheme=scheme,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=options.symmetric,
        method=method if METHODS[method].calibrated else None,
    )
    if config.scheme and not config.scheme.quantized:
        raise InputError(f"scheme {config.scheme.name} does not quantize", hint="use int8, fp8 or w4a16")
    return Recipe(config, layout=DENSE, smooth=options.smooth, calibration=calibration_of(options))


def slide_recipe(options: PatternOptions) -> Recipe:
    """The recipe of `slide`, which changes the layout and no weight."""
    return Recipe(parse_linear_config(pattern=options.pattern), layout=Slide.layout)


def calibration_of(options: Options, recipe: Calibration | None = None) -> Calibration:
    """The calibration of a recipe, overridden by the options that are given; another text comes without the weights and
    the column of the recipe's. InputError for options that are invalid or contradict each other."""
    found = recipe or Calibration()
    if isinstance(options, CalibrationOptions):
        numbers = {name: getattr(options, name) for name in ("samples", "length", "seed")}
        fields = {name: str(value) for name, value in numbers.items() if value is not None}
        more = {"text": _texts(options.calibration), "weights": options.weights, "column": options.column}
        given = fields | {name: value for name, value in more.items() if value is not None}
        explicit = parse_calibration(given, "options")
        if "text" in given:
            found = replace(found, weights=None, column=None)
        found = replace(found, **{name: getattr(explicit, name) for name in given})
    check_mixture(found)
    return found


def _texts(given: CalibrationTexts | None) -> Text | list[Text] | None:
    """One text of an option or several, as a recipe has them."""
    if given is None:
        return None
    return [text_of(one) for one in given] if isinstance(given, list | tuple) else text_of(given)


def _compatible(config: LinearConfig, explicit: LinearConfig) -> dict[str, Any]:
    """The fields of a recipe's config, without those that only go with another kind of pattern than the options'."""
    found = describe_config(config)
    grouped = config.method is not None and METHODS[config.method].whole_groups
    if explicit.whole_groups and not config.whole_groups:
        found.pop("pattern", None)
        if not grouped:
            found.pop("method", None)
    if explicit.pattern and not explicit.whole_groups:
        for name in ("sparsity", "row_cap", *(["method"] if grouped else [])):
            found.pop(name, None)
    return found


def _usual_layout(configs: Sequence[LinearConfig]) -> str:
    schemes = [config.scheme for config in configs if config.scheme]
    return usual_layout(schemes, whole_groups=any(config.whole_groups for config in configs))
