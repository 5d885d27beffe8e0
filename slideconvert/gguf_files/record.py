"""The note in a folder that was made from a GGUF file: what the file was."""

from __future__ import annotations

import json
from pathlib import Path


def record_bytes(file: Path, origin: str) -> bytes:
    """The note, to be written into the folder. origin: what the file holds, in words."""
    return (json.dumps({"file": file.name, "origin": origin}, indent=1) + "\n").encode()
