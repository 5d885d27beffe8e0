"""Recipes: the words of the YAML file, what they mean for each linear, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from slideconvert.core.patterns import BlockPattern
from slideconvert.core.schemes import BF16, FP8, INT8
from slideconvert.errors import InputError
from slideconvert.plan.calibration import Calibration
from slideconvert.plan.linear_config import LinearConfig, parse_linear_config
from slideconvert.plan.recipe import Recipe, Rule, load_recipe, parse_recipe

FULL = """
scheme: fp8
pattern: 2:8
method: magnitude
layout: slide
shard_gb: 2.5
rules:
  - {match: "*.layers.0.*", keep: true}
  - {match: "*.down_proj", pattern: 2_6}
  - {match: "*.layers.?.mlp.*", scheme: int8, method: rtn}
"""
Q, DOWN, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"


def load(text: str, tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def refused(text: str, tmp_path: Path) -> InputError:
    with pytest.raises(InputError) as error:
        load(text, tmp_path)
    assert "recipe.yaml" in error.value.what or "unknown" in error.value.what
    assert len(str(error.value).splitlines()) == 1
    return error.value


def test_every_word_of_a_recipe(tmp_path: Path) -> None:
    assert load(FULL, tmp_path) == Recipe(
        config=LinearConfig(FP8, BlockPattern(8), "magnitude"),
        rules=(
            Rule("*.layers.0.*", LinearConfig(keep=True)),
            Rule("*.down_proj", LinearConfig(pattern=BlockPattern(6))),
            Rule("*.layers.?.mlp.*", LinearConfig(scheme=INT8, method="rtn")),
        ),
        layout="slide",
        shard_bytes=2_500_000_000,
    )


def test_bundled_recipes_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file of that name comes first, and a name that none has gets the nearest."""
    monkeypatch.chdir(tmp_path)
    recipes = Path(__file__).parents[2] / "recipes"
    assert load_recipe(Path("fp8-2of6")) == load_recipe(recipes / "fp8-2of6.yaml")
    with pytest.raises(InputError, match=r"did you mean fp8-2of6\?"):
        load_recipe(Path("fp8-2of66"))
    Path("fp8-2of6").write_text(FULL)
    assert load_recipe(Path("fp8-2of6")).shard_bytes == 2_500_000_000


def test_omitted_fields_are_not_chosen(tmp_path: Path) -> None:
    assert load("{}", tmp_path) == Recipe(
        config=LinearConfig(None, None, None, None, False, None, None, None, None),
        rules=(),
        layout=None,
        preset=None,
        block_epochs=None,
        end_epochs=None,
        generated=None,
        calibration=Calibration(),
        shard_bytes=5_000_000_000,
    )
    assert load("rules: []", tmp_path) == Recipe()


@pytest.mark.parametrize("text", ["2:8", "2_8", '"2:8"', "'2_8'", "2:8   # as published", "!!int 2:8"])
def test_two_of_eight_means_that_however_it_is_quoted(text: str, tmp_path: Path) -> None:
    """YAML 1.1 reads a bare 2:8 as 128 (base 60) and 2_8 as 28."""
    assert load(f"pattern: {text}", tmp_path).config.pattern == BlockPattern(8)
    assert load(f"rules: [{{match: x, pattern: {text.partition(' #')[0]}}}]", tmp_path).rules[0].config == LinearConfig(
        pattern=BlockPattern(8)
    )


@pytest.mark.parametrize("text", ["2:inf", "2_inf", "2:INF"])
def test_two_inf(text: str, tmp_path: Path) -> None:
    assert load(f"pattern: {text}", tmp_path).config.pattern == BlockPattern(None)


# ---- what holds for a linear


def test_rule_fills_up_from_the_recipe(tmp_path: Path) -> None:
    recipe = load(FULL, tmp_path)
    assert recipe.for_linear(DOWN) == LinearConfig(FP8, BlockPattern(6), "magnitude")
    assert recipe.for_linear(UP) == LinearConfig(INT8, BlockPattern(8), "rtn")
    assert recipe.for_linear("lm_head") == LinearConfig(FP8, BlockPattern(8), "magnitude")


def test_first_match_wins() -> None:
    rules = (
        Rule("*.down_proj", parse_linear_config(pattern="2:4")),
        Rule("*.layers.1.*", parse_linear_config(scheme="bf16", pattern="2:6")),
    )
    recipe = Recipe(parse_linear_config(scheme="int8", pattern="2:16"), rules)
    assert recipe.for_linear(DOWN) == LinearConfig(INT8, BlockPattern(4))  # nothing of the second rule
    assert recipe.for_linear(UP) == LinearConfig(BF16, BlockPattern(6))
    assert Recipe(recipe.config, rules[::-1]).for_linear(DOWN) == LinearConfig(BF16, BlockPattern(6))


def test_keep_rules_keep_and_only_those(tmp_path: Path) -> None:
    recipe = load(FULL, tmp_path)
    assert recipe.for_linear(Q).keep
    assert not recipe.for_linear(DOWN).keep and not recipe.for_linear("model.layers.10.self_attn.q_proj").keep


@pytest.mark.parametrize(("keep", "kept"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_ways_to_write_keep(keep: str, kept: bool, tmp_path: Path) -> None:
    assert load(f"rules: [{{match: '*', keep: {keep}}}]", tmp_path).for_linear(Q).keep == kept


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ("*", [Q, DOWN, UP]),
        ("*.mlp.*", [DOWN, UP]),
        ("*.down_proj", [DOWN]),
        ("*.layers.?.self_attn.q_proj", [Q]),
        ("*.[qd]*_proj", [Q, DOWN]),
        (DOWN, [DOWN]),
        ("down_proj", []),  # the whole name has to match
        ("*.DOWN_PROJ", []),
    ],
)
def test_wildcards(match: str, names: list[str]) -> None:
    recipe = Recipe(rules=(Rule(match, LinearConfig(keep=True)),))
    assert [name for name in (Q, DOWN, UP) if recipe.for_linear(name).keep] == names


# ---- there and back


@pytest.mark.parametrize("text", [FULL, "{}", "pattern: 2:inf\nlayout: dense", "scheme: bf16\nmethod: rtn"])
def test_described_recipes_say_the_same_when_read_again(text: str, tmp_path: Path) -> None:
    recipe = load(text, tmp_path)
    again = load(yaml.safe_dump(recipe.describe()), tmp_path)
    assert (again.config, again.rules, again.layout) == (recipe.config, recipe.rules, recipe.layout)


def test_description_by_hand(tmp_path: Path) -> None:
    described = load(FULL, tmp_path).describe()
    assert described == {
        "scheme": "fp8",
        "pattern": "2:8",
        "method": "magnitude",
        "layout": "slide",
        "rules": [
            {"match": "*.layers.0.*", "keep": True},
            {"match": "*.down_proj", "pattern": "2:6"},
            {"match": "*.layers.?.mlp.*", "scheme": "int8", "method": "rtn"},
        ],
    }
    assert list(described) == ["scheme", "pattern", "method", "layout", "rules"]
    assert Recipe().describe() == {}


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("patern: 2:8", "'patern'", "pattern"),
        ("Scheme: int8", "'Scheme'", "scheme"),
        ("keep: true", "'keep'", ""),  # a rule's word
        ("pattern: 2:7", "pattern '2:7'", "2:8"),
        ("scheme: int4", "scheme 'int4'", "int8"),
        ("scheme: INT8", "scheme 'INT8'", "int8"),
        ("method: magnitud", "method 'magnitud'", "magnitude"),
        ("layout: slid", "layout 'slid'", "slide"),
        ("rules: [{match: x, scheme: fp88}]", "scheme 'fp88'", "fp8"),
        ("rules: [{match: x, pattern: 2:100}]", "pattern '2:100'", "2:10"),
        ("rules: [{match: x, layout: slide}]", "rule 1: 'layout'", ""),
        ("rules: [{match: x}, {mach: y}]", "rule 2: 'mach'", "match"),
    ],
)
def test_unknown_words_are_named_with_the_nearest(text: str, unknown: str, nearest: str, tmp_path: Path) -> None:
    error = refused(text, tmp_path)
    assert error.what.startswith("unknown") and error.what.endswith(unknown)
    assert error.hint.startswith(f"did you mean {nearest}? use one of" if nearest else "use one of")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'field: value' lines were expected"),
        ("int8", "'field: value' lines were expected"),
        ("[scheme, int8]", "'field: value' lines were expected"),
        ("scheme: [int8, fp8]", "scheme must be a single value"),
        ("pattern: {2: 8}", "pattern must be a single value"),
        ("layout: [slide]", "layout must be a single value"),
        ("pattern:", "pattern has no value"),
        ("scheme: ''", "scheme has no value"),
        ("rules: [{match: x, keep: }]", "rule 1: keep has no value"),
        ("rules: down_proj", "rules must be a list"),
        ("rules: {match: x}", "rules must be a list"),
        ("rules: [down_proj]", "rule 1: 'field: value' lines were expected"),
        ("rules: [{match: x}, {pattern: 2:8}]", "rule 2: no match"),
        ("rules: [{match: [x, y]}]", "rule 1: match must be a single value"),
        ("rules: [{match: x, keep: yes}]", "rule 1: keep is 'yes'"),
        ("rules: [{match: x, keep: true, pattern: 2:8}]", "rule 1: keep copies the linear unchanged"),
        ("shard_gb: big", "shard_gb is 'big', a number was expected"),
        ("shard_gb: nan", "shard_gb is 'nan', a number was expected"),
        ("shard_gb: inf", "shard_gb is 'inf', a number was expected"),
        ("shard_gb: 0", "shard_gb is '0', it must be positive"),
        ("shard_gb: -1", "shard_gb is '-1', it must be positive"),
        ("scheme: [int8", "not valid YAML"),
        ("scheme: int8\n\tpattern: 2:8", "not valid YAML"),
        ("? [a, b]\n: c", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused(text, tmp_path).what


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(InputError, match=f"recipe {path}: "):
            load_recipe(path)
    (tmp_path / "recipe.yaml").write_bytes(b"scheme: \xff")
    with pytest.raises(InputError, match=r"recipe\.yaml: not valid YAML"):
        load_recipe(tmp_path / "recipe.yaml")


def test_words_from_elsewhere_are_read_like_those_of_a_file() -> None:
    assert parse_recipe({"pattern": "2_8", "rules": [{"match": "*", "keep": "true"}]}, "here") == Recipe(
        LinearConfig(pattern=BlockPattern(8)), (Rule("*", LinearConfig(keep=True)),)
    )
    with pytest.raises(InputError, match="here, rule 1: no match"):
        parse_recipe({"rules": [{"keep": "true"}]}, "here")
