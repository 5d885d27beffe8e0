"""What the source's own model card (README.md) says that its derivatives must carry on: licence and languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.files import CARD

CARRIED = ("license", "license_name", "license_link", "language")
"""The words of a card's front matter that hold for a converted model as well."""


def source_card(folder: Path) -> dict[str, Any]:
    """The words of `CARRIED` that the card in `folder` states, as strings or lists of strings; {} if it states none.

    One language becomes a list. A card that nobody can read states nothing.
    """
    import yaml

    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    parts = text.replace("\r\n", "\n").removeprefix("\ufeff").split("---\n")
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        words = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    words = words if isinstance(words, dict) else {}
    found = {word: value for word in CARRIED if _is_text(value := words.get(word))}
    if isinstance(found.get("language"), str):
        found["language"] = [found["language"]]
    return found


def _is_text(value: Any) -> bool:
    """A string, or a list of nothing else: YAML makes a bool of the language `no`."""
    parts = value if isinstance(value, list) else [value]
    return bool(parts) and all(isinstance(part, str) and part for part in parts)
