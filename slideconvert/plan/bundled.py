"""The recipes that slideconvert provides. Nothing heavy is imported: listing them loads no torch."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from ..errors import pick


def bundled_recipes() -> dict[str, Path]:
    """The recipes that slideconvert provides, by name: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    folder = next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a bundled recipe. InputError for an unknown name, with the nearest one."""
    return bundled_recipes()[pick(name, bundled_recipes(), "recipe")]


def recipe_purpose(path: Path) -> str:
    """What a recipe is for: the first sentence of the comment at the top of its file; "" if there is none."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    first, stop, _ = " ".join(line.removeprefix("#").strip() for line in lines).partition(". ")
    return first + stop.strip()
