"""Notes in a model folder on what its weights were before they came there."""

from __future__ import annotations

from pathlib import Path

from .json_text import parse_json

GGUF_NOTE = ".slideconvert-gguf.json"
"""In a folder that was made from a GGUF file."""
ROTATION = "rotation"
"""The folder with the rotations of a rotated model: loaders that take every weight file beside the model's pass it."""
ROTATION_NOTE = f"{ROTATION}/rotation.json"


def origin_of(folder: Path) -> str:
    """What the weights in a folder were before, in words; "" without a readable note."""
    for name in (ROTATION_NOTE, GGUF_NOTE):
        try:
            return str(parse_json((folder / name).read_text(encoding="utf-8"))["origin"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""
