"""Writes recipes/MODELS.md: what the recipes make of the published models.

    python -m tests.helpers.model_table


Everything in it is what `slideconvert plan` says of a folder that holds nothing but the model's config.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.checkpoint.snapshot import Snapshot
from slideconvert.core import workers
from slideconvert.hub.source import open_for_planning
from slideconvert.plan.memory import direct_memory, needs
from slideconvert.plan.plan import Plan, make_plan
from slideconvert.plan.presets import parse_preset
from slideconvert.plan.recipe import Recipe, load_recipe
from slideconvert.report.summary import size
from tests.helpers.model_configs import PROMISED, Published

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TABLE = RECIPES / "MODELS.md"
PATTERNS = ("2of4", "2of6", "2of8", "2of10")
SCHEMES = ("int8", "fp8")
CORES = 8

HEAD = """# Published models

Written by `python -m tests.helpers.model_table` from what `slideconvert plan` says; the tests compare. All numbers hold
for the base models and for those whose id ends in `-Instruct`, and for `int8` as for `fp8`.

```bash
slideconvert plan Qwen/Qwen2.5-7B-Instruct --recipe recipes/int8-2of8.yaml
slideconvert convert Qwen/Qwen2.5-7B-Instruct qwen-7b --recipe recipes/int8-2of8.yaml
```

*Begin with*: the smaller a model, the more it loses by pruning and the less a GPU gains, so the smallest begin at 2:10.
Sizes are those of the weight files. *Memory* is that of a conversion by weights alone on {cores} cores; *GPU* that of
calibration with preset balanced, or quality with 1,024 sequences; `--offload` keeps hidden states and the optimizer in
CPU memory. `plan` lists the parts.

| model | begin with | BF16 | 2:4 | 2:6 | 2:8 | 2:10 | memory | GPU | GPU, quality | with `--offload` |
|---|---|---|---|---|---|---|---|---|---|---|
"""

SLID = """
## Columns

K' by K: how many columns the slid weights have, that of `q_proj … up_proj` first, that of `down_proj` last.

| model | K | 2:4 | 2:6 | 2:8 | 2:10 |
|---|---|---|---|---|---|
"""


def recipe_of(scheme: str, pattern: str) -> Recipe:
    """The recipe in the repository for a scheme and a pattern: recipes/int8-2of8.yaml."""
    return load_recipe(RECIPES / f"{scheme}-{pattern}.yaml")


def plan_of(model: Published, recipe: Recipe) -> Plan:
    """The plan of a published model from its config.json alone."""
    snapshot, known = _surveyed(json.dumps(model.config))
    return make_plan(snapshot, recipe, known)


@cache
def _surveyed(config: str) -> tuple[Snapshot, Checkpoint]:
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config)
        return open_for_planning(folder)


def quality(recipe: Recipe) -> Recipe:
    """The same recipe with preset quality and as many sequences as it needs."""
    return replace(recipe, preset=parse_preset("quality"), calibration=replace(recipe.calibration, samples=1024))


def render(models: Sequence[Published] = PROMISED) -> str:
    """The whole file."""
    rows, columns = [], []
    for model in models:
        plans = [plan_of(model, recipe_of("int8", pattern)) for pattern in PATTERNS]
        begin = plan_of(model, load_recipe(RECIPES / f"{model.recipe}.yaml"))
        balanced, trained = (needs(plan) for plan in (begin, plan_of(model, quality(begin.recipe))))
        with mock.patch.object(workers, "count", lambda: CORES):
            memory = direct_memory(begin)
        sizes = [begin.bytes_before, *(plan.bytes_after for plan in plans), memory]
        sizes += [balanced.peak, trained.peak, trained.offload_device]
        ids = f"`{model.hub_id}`" + (" (`-Instruct`)" if model.instruct else "")
        rows.append(_row([ids, f"`{model.recipe}`", *map(size, sizes)]))
        slid = [slid_columns(plan) for plan in plans]
        columns += [
            _row([f"`{model.hub_id}`", str(k), *(str(found[k]) for found in slid)]) for k in slid[0]
        ]  # fmt: skip
    return HEAD.format(cores=CORES) + "".join(rows) + SLID + "".join(columns)


def slid_columns(plan: Plan) -> dict[int, int]:
    """K -> K' of a plan's linears, in the order in which they come."""
    return {linear.stored.shape[1]: linear.slid_columns for linear in plan.linears}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    TABLE.write_text(render())
