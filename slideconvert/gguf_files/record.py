"""The note in a folder that was made from a GGUF file: what the file was."""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoint.json_text import parse_json

RECORD = ".slideconvert-gguf.json"


def record_bytes(file: Path, origin: str) -> bytes:
    """The note, to be written into the folder. origin: what the file holds, in words."""
    return (json.dumps({"file": file.name, "origin": origin}, indent=1) + "\n").encode()


def origin_of(folder: Path) -> str:
    """What the GGUF file was that the folder was made from, in words; "" for any other folder."""
    try:
        return str(parse_json((folder / RECORD).read_text(encoding="utf-8"))["origin"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
