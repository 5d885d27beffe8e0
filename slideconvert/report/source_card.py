"""The metadata of the source's model card (README.md) that a derived model must repeat: license and languages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..checkpoint.files import CARD

CARRIED = ("license", "license_name", "license_link", "language")
"""Fields of the front matter that apply to a converted model too."""
FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
"""Between two lines of three dashes: more of them, or dashes within a line, end nothing."""


def source_card(folder: Path) -> dict[str, Any]:
    """The fields `CARRIED` of the card in `folder`, as strings or lists of strings; {} without a readable card.

    A single language becomes a list.
    """
    import yaml

    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = FRONT_MATTER.match(text.replace("\r\n", "\n").removeprefix("\ufeff"))
    if front is None:
        return {}
    try:
        fields = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    fields = fields if isinstance(fields, dict) else {}
    found = {name: value for name in CARRIED if _is_text(value := fields.get(name))}
    if isinstance(found.get("language"), str):
        found["language"] = [found["language"]]
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a string or a list of strings. YAML reads the language `no` as a bool, which is neither."""
    parts = value if isinstance(value, list) else [value]
    return bool(parts) and all(isinstance(part, str) and part for part in parts)
