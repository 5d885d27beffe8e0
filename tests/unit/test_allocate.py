"""Which pattern for which linear: the knapsack against brute force, targets, rules of recipes, and what a planned model
is expected to gain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slideconvert.allocate import knapsack
from slideconvert.allocate.allocation import allocate_for_density, allocate_for_speedup, with_allocation
from slideconvert.allocate.expected import expected_speedup
from slideconvert.allocate.fused import fuse, group_times, worth_trying
from slideconvert.allocate.knapsack import Option, least_error
from slideconvert.allocate.speed import SpeedTable
from slideconvert.core.patterns import ALL, BlockPattern
from slideconvert.errors import InputError
from slideconvert.hub.source import resolve
from slideconvert.models.families import LLAMA
from slideconvert.plan.linear import LinearPlan
from slideconvert.plan.linear_config import parse_linear_config
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import Recipe, load_recipe, parse_recipe
from tests.helpers.fused_models import HEAD, LAYERS, model, patterns, random_errors, table_of
from tests.helpers.matrices import examples

DENSE = BlockPattern(None)


# ---- the knapsack


GROUPS = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5), min_size=1, max_size=5
)


def brute_force(groups: Sequence[Sequence[Option]], budget: float) -> Option | None:
    """Least error and, with it, least cost over all choices, as (error, cost)."""
    sums = [tuple(map(sum, zip(*chosen, strict=True))) for chosen in itertools.product(*groups)]
    return min(((error, cost) for cost, error in sums if cost <= budget), default=None)


@examples(300)
@given(groups=GROUPS, budget=st.integers(0, 60))
def test_no_choice_is_better(groups: list[list[Option]], budget: int) -> None:
    """Integers, whose sums are exact and often equal."""
    with np.errstate(all="raise"):
        found, best = least_error(groups, budget), brute_force(groups, budget)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert (found.error, found.cost) == best
    chosen = [group[choice] for group, choice in zip(groups, found.choices, strict=True)]
    assert (sum(error for _, error in chosen), sum(cost for cost, _ in chosen)) == best
    assert found.floor == found.error


@examples(200)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 6), tightness=st.floats(0, 1))
def test_no_choice_of_real_costs_is_better(seed: int, count: int, tightness: float) -> None:
    rng = np.random.default_rng(seed)
    groups = [[(float(c), float(e)) for c, e in rng.lognormal(size=(4, 2))] for _ in range(count)]
    least, most = (sum(pick(cost for cost, _ in group) for group in groups) for pick in (min, max))
    budget = least + tightness * (most - least)
    found, best = least_error(groups, budget), brute_force(groups, budget * (1 + 1e-12))
    assert found is not None
    assert best is not None
    assert (found.error, found.cost) == pytest.approx(best, rel=1e-12)
    assert found.cost <= budget * (1 + 1e-11)


def table_dp(groups: Sequence[Sequence[tuple[int, int]]], budget: int) -> float:
    """The least error by the textbook's table over all integer costs."""
    least = np.zeros(budget + 1)
    for group in groups:
        shifted = np.full((len(group), budget + 1), np.inf)
        for row, (cost, error) in zip(shifted, group, strict=True):
            row[cost:] = least[: budget + 1 - cost] + error
        least = shifted.min(axis=0)
    return float(least[budget])


def large_groups(seed: int, layers: int) -> list[list[tuple[int, int]]]:
    """Costs and errors in integers, four groups of eight options a layer, as a large model has them."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(layers):
        for weights in (8, 7, 47, 24):
            speed = np.array([2.0, 1.5, 1.4, 1.25, 1.2, 1.15, 1.1, 1.0])
            error = np.array([100, 40, 20, 13, 10, 8, 7, 1]) * rng.lognormal(size=8, sigma=0.2) * rng.lognormal()
            groups.append(
                [(round(10 * weights / s), round(100 * weights * e)) for s, e in zip(speed, error, strict=True)]
            )
    return groups


@pytest.mark.parametrize("seed", [0, 1])
def test_eighty_layers_are_solved_exactly(seed: int) -> None:
    groups = large_groups(seed, 80)
    dense, before = sum(group[-1][0] for group in groups), 0.0
    for speedup in (1.0, 1.1, 1.3, 1.9):
        found = least_error(groups, int(dense / speedup))
        assert found is not None
        assert found.error == found.floor == table_dp(groups, int(dense / speedup))
        assert found.error >= before
        before = found.error


@examples(100)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 6), speedup=st.floats(1, 1.99))
def test_with_room_for_few_sums_the_answer_bounds_its_error(seed: int, most: int, speedup: float) -> None:
    groups = large_groups(seed, 3)
    budget = int(sum(group[-1][0] for group in groups) / speedup)
    best = table_dp(groups, budget)
    with mock.patch.object(knapsack, "MOST_SUMS", most):
        found = least_error(groups, budget)
    assert found is not None
    assert found.cost <= budget
    assert found.floor <= best <= found.error


def test_errors_in_proportion_to_costs_are_solved_nearly() -> None:
    """Every sum seems as good as every other one here: the hard case."""
    groups = [[(w / s, w * (1.001 - 1 / s)) for s in (1.88, 1.4, 1.31, 1.1, 1.0)] for w in (84, 67, 470, 235) * 12]
    found = least_error(groups, sum(group[-1][0] for group in groups) / 1.2)
    assert found is not None
    assert found.error <= found.floor * 1.001


# ---- groups, targets


def test_fused_groups() -> None:
    groups = model(2)
    assert [group.shape for group in groups] == LAYERS["Llama-3.2-1B"] * 2
    assert [str(group) for group in groups[:5]] == [
        "layer 0 q/k/v", "layer 0 o", "layer 0 gate/up", "layer 0 down", "layer 1 q/k/v",
    ]  # fmt: skip
    assert [group.weights for group in groups[:2]] == [3072 * 2048, 2048 * 2048]
    assert sum(len(group.linears) for group in groups) == 2 * len(LLAMA.linears)


@examples(25)
@given(seed=st.integers(0, 2**32), target=st.floats(1, 2))
def test_the_allocation_for_a_speedup_is_the_best_of_all(seed: int, target: float) -> None:
    groups = model(1, LAYERS["Qwen2.5-7B"])
    times = group_times(groups, SpeedTable.load("a100"), "int8", 4096)
    tried = patterns("2:4", "2:6", "2:8", "2:14", "2:inf")
    errors = random_errors(groups, tried, seed)
    found = allocate_for_speedup(groups, errors, times, target)
    speed = {"2:4": 2.0, "2:6": 1.49, "2:8": 4 / 3, "2:14": 1.16, "2:inf": 1.0}
    weights = [group.weights for group in groups]
    best = math.inf
    for chosen in itertools.product(tried, repeat=4):
        time = sum(count / speed[str(pattern)] for count, pattern in zip(weights, chosen, strict=True))
        if sum(weights) / time >= target * (1 - 1e-9):
            best = min(best, sum(error[pattern] for error, pattern in zip(errors, chosen, strict=True)))
    assert found.error == pytest.approx(best, rel=1e-12)
    spent = sum(group.weights / speed[str(pattern)] for group, pattern in found.patterns.items())
    assert found.speedup == pytest.approx(sum(weights) / spent, rel=1e-12)
    assert found.speedup >= target * (1 - 1e-9)
    kept = sum(group.weights * pattern.density for group, pattern in found.patterns.items())
    assert found.density == pytest.approx(kept / sum(weights))
    assert list(found.patterns) == groups


@examples(10)
@given(seed=st.integers(0, 2**32))
def test_asking_for_more_costs_more(seed: int) -> None:
    groups = model(6, LAYERS["Qwen2.5-14B"])
    errors = random_errors(groups, patterns("2:4", "2:6", "2:8", "2:10", "2:inf"), seed)
    times = group_times(groups, SpeedTable.load("a100"), "int8")
    faster = [allocate_for_speedup(groups, errors, times, target).error for target in (1, 1.1, 1.2, 1.4, 1.8, 2)]
    smaller = [allocate_for_density(groups, errors, target).error for target in (1, 0.9, 0.75, 0.6, 0.5)]
    assert faster == sorted(faster)
    assert smaller == sorted(smaller)
    assert faster[-1] == smaller[-1] == pytest.approx(sum(error[BlockPattern(4)] for error in errors))


def test_a_density_that_a_pattern_has_can_be_met_exactly() -> None:
    """Rounding must not take the last weight away: the budget is met to the last bit or nearly."""
    groups = model(80)
    errors = [{p: group.weights * (1 - p.density) ** 2 for p in ALL} for group in groups]  # best spent evenly
    for target in patterns("2:6", "2:8", "2:10"):
        found = allocate_for_density(groups, errors, target.density)
        assert set(found.patterns.values()) == {target}
        assert found.density == pytest.approx(target.density, rel=1e-12)
        assert found.speedup is None


def test_what_gains_nothing_stays_dense() -> None:
    groups = model(2)
    times = group_times(groups, SpeedTable.load("gb10"), "int8", 16384)
    times = [replace(time, sparse=dict.fromkeys(time.sparse, 2 * time.dense)) for time in times]
    errors = random_errors(groups, patterns("2:4", "2:8", "2:inf"), 0)
    assert set(allocate_for_speedup(groups, errors, times, 1.0).patterns.values()) == {DENSE}


def test_of_patterns_with_equal_cost_the_milder_one_is_chosen(tmp_path: Path) -> None:
    table = table_of(tmp_path, HEAD + "g,int8,m,3072x2048,64,10,1.3,1.3\n")
    groups = model(1)
    errors = [dict.fromkeys(patterns("2:4", "2:8"), 1.0)] * 4
    times = group_times(groups, table, "int8", 64)
    assert set(allocate_for_speedup(groups, errors, times, 1.3).patterns.values()) == {BlockPattern(8)}


def test_a_target_out_of_reach_is_refused_with_what_can_be_reached() -> None:
    groups = model(3, LAYERS["Qwen2.5-7B"])
    times = group_times(groups, SpeedTable.load("h200"), "int8", 4096)
    errors = random_errors(groups, patterns("2:6", "2:8", "2:inf"), 0)
    with pytest.raises(InputError, match=r"1.5: 1.093 is the most .* 2:6, 2:8, 2:inf \(times of Qwen2.5-7B on h200"):
        allocate_for_speedup(groups, errors, times, 1.5)
    assert allocate_for_speedup(groups, errors, times, 1.093).speedup == pytest.approx(1.093)
    with pytest.raises(InputError, match=r"0.5: 0.667 is the least that can be reached with 2:6, 2:8, 2:inf"):
        allocate_for_density(groups, errors, 0.5)
    assert allocate_for_density(groups, errors, 0.667).density <= 0.667


@pytest.mark.parametrize("dense", range(4))
def test_targets_reported_as_reachable_are_reachable(dense: int) -> None:
    groups = model(2, LAYERS["Qwen2.5-7B"])
    times = group_times(groups, SpeedTable.load("a100"), "int8", 2048)
    errors = random_errors(groups, patterns("2:6", "2:8", "2:inf"), 0)
    errors[dense] = {DENSE: 1.0}
    for allocate, out_of_reach, words in (
        (lambda target: allocate_for_speedup(groups, errors, times, target), 2.0, "most"),
        (lambda target: allocate_for_density(groups, errors, target), 0.5, "least"),
    ):
        with pytest.raises(InputError, match=rf"([\d.]+) is the {words}") as refused:
            allocate(out_of_reach)
        said = refused.value.what.split(f" is the {words}")[0].rpartition(" ")[2]
        allocate(float(said))


@pytest.mark.parametrize("target", [0.99, 0, -1.2, math.nan])
def test_a_speedup_must_be_one(target: float) -> None:
    groups = model(1)
    times = group_times(groups, SpeedTable.load("a100"), "int8")
    with pytest.raises(InputError, match="it must be at least 1"):
        allocate_for_speedup(groups, random_errors(groups, ALL, 0), times, target)


@pytest.mark.parametrize("target", [0, 1.01, 75, math.nan])
def test_a_density_must_be_a_share(target: float) -> None:
    groups = model(1)
    with pytest.raises(InputError, match=r"it must lie between 0 and 1 \(0.75 is the density of 2:8\)"):
        allocate_for_density(groups, random_errors(groups, ALL, 0), target)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_errors_that_cannot_be_compared_are_refused(value: float) -> None:
    groups = model(2)
    errors = random_errors(groups, patterns("2:8", "2:inf"), 0)
    errors[6][BlockPattern(8)] = value
    with pytest.raises(InputError, match=r"layer 1 gate/up: the error with 2:8 is"):
        allocate_for_density(groups, errors, 0.9)


def test_nothing_to_choose_from_is_refused() -> None:
    groups = model(1)
    with pytest.raises(InputError, match="layer 0 q/k/v: no pattern to choose from"):
        allocate_for_density(groups, [{}] * 4, 0.9)
    with pytest.raises(InputError, match="no linear needs a pattern"):
        allocate_for_speedup([], [], [], 1.2)


def test_patterns_without_a_time_are_refused() -> None:
    groups = model(1, LAYERS["Qwen2.5-7B"])
    times = group_times(groups, SpeedTable.load("a100"), "int8")
    with pytest.raises(InputError, match=r"no time of 2:16 for Qwen2.5-7B"):
        allocate_for_speedup(groups, random_errors(groups, ALL, 0), times, 1.2)


def test_only_patterns_that_pay_are_worth_trying() -> None:
    def worth(gpu: str, name: str, tokens: int) -> list[str]:
        times = group_times(model(2, LAYERS[name]), SpeedTable.load(gpu), "int8", tokens)
        return [str(pattern) for pattern in worth_trying(times)]

    assert worth("a100", "Qwen2.5-7B", 4096) == ["2:4", "2:6", "2:8", "2:10", "2:14"]  # 2:12 is slower than 2:14
    assert worth("a100", "Llama-3.2-1B", 4096) == ["2:4", "2:6", "2:8", "2:16"]  # 2:10 to 2:14 are slower than 2:16
    assert worth("h100", "BitNet-2B", 4096) == ["2:4", "2:6"]
    assert worth("h200", "Llama-3.2-1B", 4096) == ["2:4"]
    assert worth("h200", "Llama-3.2-1B", 64) == ["2:4", "2:6", "2:8", "2:10"]


# ---- recipes


BASES = [
    {"match": "*.layers.1.*", "keep": "true"},
    {"match": "*.mlp.*", "scheme": "fp8"},
    {"match": "*.layers.*.self_attn.o_proj", "keep": "true"},
    {"match": "*.self_attn.*", "pattern": "2:10", "method": "magnitude"},
]


@examples(40)
@given(seed=st.integers(0, 2**32), layers=st.integers(1, 14), bases=st.lists(st.sampled_from(BASES), max_size=4))
def test_the_recipe_gives_every_linear_its_pattern_and_changes_nothing_else(
    seed: int, layers: int, bases: list[dict[str, str]]
) -> None:
    before = parse_recipe({"scheme": "int8", "pattern": "2:16", "rules": bases}, "here")
    groups, rng = model(layers), np.random.default_rng(seed)
    linears = [linear for group in groups for linear in group.linears]
    free = [group for group in groups if not before.for_linear(group.linears[0].name).keep]
    chosen = {group: ALL[int(rng.choice([0, 2, 7], p=[0.1, 0.7, 0.2]))] for group in free}
    recipe = with_allocation(before, chosen, linears)
    expected = {linear.name: before.for_linear(linear.name) for linear in linears}
    for group, pattern in chosen.items():
        for linear in group.linears:
            expected[linear.name] = replace(expected[linear.name], pattern=pattern)
    again = parse_recipe({word: strings(value) for word, value in recipe.describe().items()}, "again")
    for read in (recipe, again):
        assert {linear.name: read.for_linear(linear.name) for linear in linears} == expected
    assert (recipe.config, recipe.layout) == (before.config, before.layout)


def strings(words: object) -> object:
    """As the YAML loader gives them: every scalar a string."""
    if isinstance(words, list):
        return [{key: str(value).lower() for key, value in rule.items()} for rule in words]
    return words


def test_an_allocation_reads_well_in_a_recipe(tmp_path: Path) -> None:
    groups = model(3)
    chosen = dict.fromkeys(groups, BlockPattern(8)) | {groups[0]: DENSE, groups[10]: BlockPattern(4)}
    linears = [linear for group in groups for linear in group.linears]
    recipe = Recipe(parse_linear_config(scheme="int8", pattern="2:16", method="magnitude"))
    rules = with_allocation(recipe, chosen, linears).rules
    assert [rule.describe() for rule in rules] == [
        {"match": "*.layers.0.self_attn.[qkv]_proj", "pattern": "2:inf"},
        {"match": "*.layers.2.mlp.[gu]*_proj", "pattern": "2:4"},
        {"match": "*.self_attn.[qkv]_proj", "pattern": "2:8"},
        {"match": "*.self_attn.o_proj", "pattern": "2:8"},
        {"match": "*.mlp.[gu]*_proj", "pattern": "2:8"},
        {"match": "*.mlp.down_proj", "pattern": "2:8"},
    ]
    lines = [f"  - {{match: '{rule.match}', pattern: '{rule.config.pattern}'}}" for rule in rules]
    (tmp_path / "recipe.yaml").write_text("\n".join(["scheme: int8", "rules:", *lines]))
    assert load_recipe(tmp_path / "recipe.yaml").rules == rules


# ---- what a plan may expect


def plans(folder: Path, **words: object) -> list[LinearPlan]:
    """What becomes of the pico model; words of a recipe overrule int8 and 2:8."""
    recipe = parse_recipe(
        {"scheme": "int8", "pattern": "2:8", "method": "magnitude", "layout": "slide", **words}, "here"
    )
    return list(make_plan(resolve(str(folder)), recipe).linears)


PICO = "64x64+128x64+176x64+64x88"
TIMES = HEAD + f"g,int8,pico,{PICO},64,1000,2,1.25\ng,fp8,pico,{PICO},64,500,1.6,1\n"


def test_a_uniform_plan_gains_what_was_measured(tmp_path: Path, source: Path) -> None:
    table = table_of(tmp_path, TIMES)
    expected = expected_speedup(plans(source), table, 64)
    assert expected.speedup == pytest.approx(1.25)
    assert (expected.gpu, expected.tokens, expected.left_out) == ("g", 64, ())
    assert expected.measured == ("pico on g at 64 tokens",)
    weights = 3 * (128 * 64 + 64 * 64 + 2 * 88 * 64 + 64 * 88)
    per_weight = 1000 / (64 * 64 + 128 * 64 + 176 * 64 + 64 * 88)
    assert (expected.dense, expected.planned) == pytest.approx((per_weight * weights, per_weight * weights / 1.25))
    assert expected_speedup(plans(source, scheme="fp8", pattern="2:4"), table, 64).speedup == pytest.approx(1.6)
    assert expected_speedup(plans(source, pattern="2:inf"), table, 64).speedup == 1


def test_a_mixed_plan_gains_by_the_weights_of_its_linears(tmp_path: Path, source: Path) -> None:
    rules = [
        {"match": "model.layers.0.*", "keep": "true"},
        {"match": "*.layers.2.*", "scheme": "bf16"},
        {"match": "*.self_attn.[qkv]_proj", "scheme": "fp8"},
        {"match": "*.down_proj", "pattern": "2:4"},
        {"match": "*.o_proj", "pattern": "2:inf"},
    ]
    expected = expected_speedup(plans(source, rules=rules), table_of(tmp_path, TIMES), 64)
    qkv, o, gate_up, down = 128 * 64, 64 * 64, 176 * 64, 64 * 88
    dense, planned = qkv / 2 + o + gate_up + down, qkv / 2 + o + gate_up / 1.25 + down / 2
    assert expected.speedup == pytest.approx(dense / planned)
    assert len(expected.left_out) == 14
    assert {name.split(".")[2] for name in expected.left_out} == {"0", "2"}


def test_an_allocation_becomes_the_plan_and_its_expectation(tmp_path: Path, source: Path) -> None:
    table = table_of(tmp_path, TIMES)
    groups = fuse({plan.linear: plan.stored.shape for plan in plans(source)})
    errors = random_errors(groups, patterns("2:4", "2:8", "2:inf"), 0)
    found = allocate_for_speedup(groups, errors, group_times(groups, table, "int8", 64), 1.3)
    recipe = with_allocation(Recipe(), found.patterns, [linear for group in groups for linear in group.linears])
    planned = plans(source, rules=[rule.describe() for rule in recipe.rules])
    by_name = {linear.name: pattern for group, pattern in found.patterns.items() for linear in group.linears}
    assert {plan.linear.name: plan.pattern for plan in planned} == by_name
    assert expected_speedup(planned, table, 64).speedup == pytest.approx(found.speedup, rel=1e-12)


def test_a_plan_without_8_bit_linears_expects_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="no linear is quantized"):
        expected_speedup(plans(source, scheme="bf16", layout="dense"), table_of(tmp_path, TIMES), 64)


def test_a_plan_with_a_pattern_that_was_not_measured_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match=r"no time of 2:6 for pico on g at 64 tokens \(it has 2:4, 2:8"):
        expected_speedup(plans(source, pattern="2:6"), table_of(tmp_path, TIMES), 64)
