"""Which GGUF file a source names, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.files import PICKLES, STAGING
from ..errors import InputError
from .container import MERGE, SPLIT, SUFFIX


def gguf_file(source: str) -> Path | None:
    """The GGUF file that `source` names: itself, or the only one in a folder without other weights. None if it names
    anything else.

    InputError for a .gguf file that does not exist, and for a folder with several.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such file", hint="give the path of a GGUF file, a folder or a Hub id")
        return path
    if not path.is_dir() or (path / STAGING).exists():
        return None
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.endswith((".safetensors", *PICKLES)) for name in names):
        return None
    found = [name for name in names if name.lower().endswith(SUFFIX)]
    if len(found) > 1:
        parts = all(SPLIT.search(name) for name in found)
        raise InputError(
            f"{path}: {len(found)} GGUF files ({', '.join(found[:3])}{' …' if len(found) > 3 else ''})",
            hint=MERGE if parts else "give the path of one of them",
        )
    return path / found[0] if found else None
