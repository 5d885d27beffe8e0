"""Every promised model with every scheme and pattern: planned from its config.json, compared with published shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slideconvert.allocate.fused import fuse
from tests.conftest import Cli
from tests.helpers.fused_models import LAYERS
from tests.helpers.model_configs import PROMISED, Published
from tests.helpers.model_table import PATTERNS, RECIPES, SCHEMES, TABLE, plan_of, recipe_of, render, slid_columns
from tests.unit.test_patterns import SLID_COLUMNS

FUSED = {
    "meta-llama/Llama-3.2-1B": "Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B": "Llama-3.2-3B",
    "Qwen/Qwen2.5-7B": "Qwen2.5-7B",
    "Qwen/Qwen2.5-14B": "Qwen2.5-14B",
    "microsoft/bitnet-b1.58-2B-4T-bf16": "BitNet-2B",
}
"""Hub id -> its name in the published tables of fused linears."""
METHODS = {"2of4": "alps", "2of6": "alps", "2of8": "obs", "2of10": "obs"}

models = pytest.mark.parametrize("model", PROMISED, ids=lambda model: model.hub_id)


def expected_columns(columns: int, length: int) -> int:
    """K' by hand, for the K that nobody published: L / 2 - 1 windows of 4 in a group of L, padded to 32."""
    published = SLID_COLUMNS.get(columns)
    if published and length > 4:
        return published[(length - 6) // 2]
    slid = -(-columns // length) * (2 * length - 4)
    return -(-slid // 32) * 32


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scheme", SCHEMES)
@models
def test_recipes_plan_the_published_shapes(model: Published, scheme: str, pattern: str) -> None:
    plan = plan_of(model, recipe_of(scheme, pattern))
    length = int(pattern.removeprefix("2of"))
    assert slid_columns(plan) == {columns: expected_columns(columns, length) for columns in slid_columns(plan)}
    assert {(linear.scheme.name, str(linear.pattern), linear.method) for linear in plan.linears} == {
        (scheme, f"2:{length}", METHODS[pattern])
    }
    assert len(plan.linears) == 7 * model.config["num_hidden_layers"]
    assert plan.bytes_before == 2 * model.parameters
    # Values and positions of what is slid, a scale a row, and everything else as it was.
    before = sum(linear.stored.bytes for linear in plan.linears)
    after = sum(
        rows * (5 * linear.slid_columns // 8 + 4) for linear in plan.linears for rows in [linear.stored.shape[0]]
    )
    assert plan.bytes_after == plan.bytes_before - before + after


@models
def test_fused_shapes_are_the_published_ones(model: Published) -> None:
    if model.hub_id not in FUSED:
        assert model.hub_id.startswith("Qwen/") and model.parameters < 4e9  # of which no times were published
        return
    shapes = {linear.linear: linear.stored.shape for linear in plan_of(model, recipe_of("int8", "2of8")).linears}
    layer = fuse({linear: shape for linear, shape in shapes.items() if linear.layer == 0})
    assert [group.shape for group in layer] == LAYERS[FUSED[model.hub_id]]


def test_the_command_plans_them(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PROMISED[-1].config))
    made = json.loads(cli("plan", tmp_path, "--recipe", RECIPES / "int8-2of8.yaml", "--json").out)
    plan = plan_of(PROMISED[-1], recipe_of("int8", "2of8"))
    assert (made["bytes_after"], made["known_by"]) == (plan.bytes_after, "config.json")


def test_the_table_agrees_with_plan() -> None:
    assert TABLE.read_text() == render(), "run `python -m tests.helpers.model_table`"
    for model in PROMISED:
        assert f"`{model.hub_id}`" in TABLE.read_text() and (RECIPES / f"{model.recipe}.yaml").is_file()
