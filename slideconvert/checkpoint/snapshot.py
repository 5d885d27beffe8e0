"""A model folder with its origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """A local folder with one fixed state of a model.

    path: the folder with config.json and the *.safetensors files.
    id: the Hub id, or the folder's name for a folder of unknown origin.
    revision: the 40-hex commit, None for a folder of unknown origin.
    origin: what the weights were before this folder, in words; "" for weights that are as they were published.
    """

    path: Path
    id: str
    revision: str | None
    origin: str = ""
