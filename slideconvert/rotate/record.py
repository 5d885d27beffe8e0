"""What a rotated folder says about itself, in rotation/ beside the weights: the rotations, and a note.

    rotation.json            the source, the settings, the estimated losses, and the sha256 of every other file
    rotations.safetensors    residual [hidden, hidden], layers.N.heads [key-value heads, head_dim, head_dim], float32

The model itself is an ordinary checkpoint, which nothing but `verify` reads these for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .. import __version__
from ..checkpoint.container import read_header
from ..checkpoint.origin import ROTATION, ROTATION_NOTE
from ..checkpoint.reader import read_json
from ..checkpoint.snapshot import Snapshot
from ..core.choices import ROTATED
from ..errors import InputError
from .rotations import Rotations

MATRICES = f"{ROTATION}/rotations.safetensors"
VERSION = 1


@dataclass(frozen=True)
class RotationRecord:
    """The note of a rotated folder.

    source: id and revision (None for a folder of unknown origin). origin: what the weights were, in words. pattern,
    parts (choices.ROTATED), steps: of the search. calibration: fields of `Calibration`. before, after: estimated
    pruning loss by layer, relative to the energy of the outputs. files: sha256 in hex by path, of all files but this
    one and the card.
    """

    source: dict[str, Any]
    origin: str
    pattern: str
    parts: str
    steps: int
    calibration: dict[str, Any]
    before: tuple[float, ...]
    after: tuple[float, ...]
    files: Mapping[str, str]
    version: int = VERSION
    slideconvert: str = __version__

    def to_bytes(self) -> bytes:
        """The content of rotation.json."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def origin_words(snapshot: Snapshot, pattern: str) -> str:
    """What a model was that is converted after a rotation, in words."""
    before = f" ({snapshot.origin})" if snapshot.origin else ""
    return f"{snapshot.id}{before}, rotated for {pattern} by slideconvert rotate"


def is_rotated(folder: Path) -> bool:
    """Whether `rotate` wrote the model in a folder."""
    return (folder / ROTATION_NOTE).is_file()


def read_rotation(folder: Path) -> RotationRecord:
    """The note of a rotated folder. InputError if it is unreadable or of a later version."""
    path = folder / ROTATION_NOTE
    raw = read_json(path)
    try:
        if int(raw["version"]) > VERSION:
            raise InputError(
                f"{path}: version {raw['version']}, this slideconvert {__version__} reads up to {VERSION}",
                hint="upgrade slideconvert",
            )
        if raw["parts"] not in ROTATED or not all(isinstance(digest, str) for digest in raw["files"].values()):
            raise ValueError("no sha256 by name, or unknown parts")
        return RotationRecord(**raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: unreadable ({error!r})", hint="rotate the model again") from error


def read_rotations(folder: Path, identity: Rotations) -> Rotations:
    """The rotations of a folder, float32. identity: those of its model that change nothing. InputError for a file that
    is missing or damaged, or of another model."""
    path = folder / MATRICES
    if not path.is_file():
        raise InputError(f"{path} is missing", hint="copy the folder again, or rotate the model again")
    read_header(path)
    tensors: dict[str, Tensor] = load_file(path)
    return Rotations.from_tensors(tensors, identity, str(path))
