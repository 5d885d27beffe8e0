"""slidesparse_config, our own record in config.json.

It stands at the root of config.json, where transformers keeps it when it saves a model again; inside
quantization_config it would be dropped. It states per linear what was done, where the weights came from, and the
sha256 of every file but the model card, config.json among them, so a checkpoint explains and checks itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from .. import __version__
from ..checkpoint.files import CARD
from ..checkpoint.reader import LONGEST, Checkpoint
from ..core.patterns import Pattern, parse_pattern
from ..core.schemes import Scheme, read_scheme
from ..core.ternary import FLOATS
from ..errors import InputError, pick, printable
from ..runtime.slidesparse_record import FORMAT_VERSION, LAYOUTS, RECORD, SAVED_AGAIN, SETTINGS
from .base import Declared, StoredLinear
from .bitnet import bitnet_coding
from .registry import describe, format_for


@dataclass(frozen=True)
class LinearRecord:
    """What was done to one linear. method is "" when nothing was pruned; on_codes: pruned after quantization; moved:
    by how many conversions, one after another, survivors were moved and not only rounded (calibration, training);
    permuted: rows or columns stand in another order than in the source; smoothed: rows or columns
    are scaled (smooth/)."""

    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern
    method: str = ""
    on_codes: bool = False
    moved: int = 0
    permuted: bool = False
    smoothed: bool = False

    def to_json(self, layout: str) -> dict[str, Any]:
        slid = format_for(layout, self.scheme, self.pattern).slid
        return {
            "shape": list(self.shape),
            "scheme": self.scheme.name,
            **self.scheme.describe(),
            "pattern": str(self.pattern),
            **self.pattern.record_fields(self.shape, slid=slid),
            **({"method": self.method} if self.method else {}),
            **({"pruned_on": "codes"} if self.on_codes else {}),
            **({"moved": self.moved} if self.moved else {}),
            **({"permuted": True} if self.permuted else {}),
            **({"smoothed": True} if self.smoothed else {}),
            **self.scheme.constraint(),
        }


@dataclass(frozen=True)
class Record:
    """The whole slidesparse_config. linears: by module name, without those that were kept.

    source: id and revision of the BF16 model that the weights come from. recipe: the fields of the recipe.
    files: sha256 by file name. kernels: sha256 of the bundled code by path. reports: sha256 of report.json and
    report.html. saved_again: the library that saved the model again, and left the hashes out; "" if none did.
    """

    layout: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    linears: dict[str, LinearRecord]
    files: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    saved_again: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "tool": f"slideconvert {__version__}",
            "layout": self.layout,
            "source": self.source,
            "recipe": self.recipe,
            "layers": {name: linear.to_json(self.layout) for name, linear in self.linears.items()},
            "files": self.files,
            "kernels": self.kernels,
            "reports": self.reports,
        }


def with_reports(config: dict[str, Any], reports: dict[str, str]) -> dict[str, Any]:
    """A config.json with the sha256 of the reports in its record. The card is left out: it may be edited."""
    hashes = {name: digest for name, digest in sorted(reports.items()) if name != CARD}
    return sealed({**config, RECORD: {**config[RECORD], "reports": hashes}})


def sealed(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with the sha256 of its content in its record."""
    return {**config, RECORD: {**config[RECORD], "sha256": config_digest(config)}}


def config_digest(config: dict[str, Any]) -> str:
    """sha256, in hex, of what a config.json says: not of its spaces, nor of the settings that users may add."""
    said = {key: value for key, value in config.items() if key != SETTINGS}
    said[RECORD] = {key: value for key, value in config[RECORD].items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def config_text(config: dict[str, Any]) -> bytes:
    """The bytes of a config.json."""
    return (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode()


def read_record(config: dict[str, Any], where: str) -> Record | None:
    """The record of a config.json, None if there is none.

    InputError if it is newer than we are or broken, lacks the hashes, or names a file outside the folder.
    """
    raw = config.get(RECORD)
    if raw is None:
        return None
    try:
        version = int(raw["format_version"])
        if version > FORMAT_VERSION:
            raise InputError(
                f"{where}: format version {version}, this slideconvert {__version__} reads up to {FORMAT_VERSION}",
                hint="upgrade slideconvert",
            )
        linears = {name: _read_linear(entry) for name, entry in raw["layers"].items()}
        again = _text(raw.get(SAVED_AGAIN, ""))
        files, kernels = ({} if again else _hashes(raw, key) for key in ("files", "kernels"))
        reports = _texts(raw.get("reports", {}))  # verify asks for them: checkpoints of earlier versions have none
        _check_inside([*files, *kernels, *reports], where)
        return Record(
            pick(raw["layout"], LAYOUTS, "layout"), _read_source(raw["source"]), _mapping(raw["recipe"]), linears,
            files, kernels, reports, again,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{where}: unreadable {RECORD} ({error!r})", hint="convert the model again") from error


def _hashes(raw: dict[str, Any], key: str) -> dict[str, str]:
    """sha256 by path. ValueError for anything else, and without files: there are weights at least."""
    if key not in raw or (key == "files" and not raw[key]):
        raise ValueError(f"no sha256 of the {key}")
    return _texts(raw[key])


def _check_inside(names: Iterable[str], where: str) -> None:
    """InputError for a path that leads out of the folder."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise InputError(
                f"{where}: the record names a file outside the folder: {name}", hint="do not trust this folder"
            )


def describe_linear(checkpoint: Checkpoint, record: Record | None, name: str) -> StoredLinear:
    """How a linear is stored, with the pattern and shape that the checkpoint's record declares, if it has one."""
    entry = record.linears.get(name) if record else None
    if entry:
        declared = Declared(entry.shape, entry.scheme, entry.pattern)
        try:
            return describe(checkpoint, name, declared, coding=FLOATS if entry.scheme.ternary else None)
        except ValueError as error:
            raise InputError(f"{name}: its record cannot be: {error}", hint="convert the model again") from error
    return describe(checkpoint, name, None, coding=None if record else bitnet_coding(checkpoint.config))


def _mapping(value: Any) -> dict[str, Any]:
    """A JSON object. TypeError for anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no JSON object")
    return value


def _texts(value: Any) -> dict[str, str]:
    """A JSON object of texts by relative path. TypeError or ValueError for anything else."""
    for path, text in _mapping(value).items():
        if any(len(part.encode()) > LONGEST for part in _text(path).split("/")):
            raise ValueError(f"{path[:40]} … is no path of a file")
        _text(text)
    return _mapping(value)


def _text(value: Any) -> str:
    """A text without control characters. TypeError or ValueError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    if printable(value) != value:
        raise ValueError(f"{value!r} has control characters")
    return value


def _read_source(value: Any) -> dict[str, Any]:
    """The id of a source, and its revision or None. KeyError, TypeError or ValueError for anything else."""
    _text(_mapping(value)["id"])
    if value["revision"] is not None:
        _text(value["revision"])
    return _mapping(value)


def _read_linear(entry: dict[str, Any]) -> LinearRecord:
    rows, columns = entry["shape"]
    return LinearRecord(
        shape=(int(rows), int(columns)),
        scheme=read_scheme(entry["scheme"], entry),
        pattern=parse_pattern(entry["pattern"]),
        method=_text(entry.get("method", "")),
        on_codes=entry.get("pruned_on") == "codes",
        moved=int(entry.get("moved", 0)),
        permuted=bool(entry.get("permuted", False)),
        smoothed=bool(entry.get("smoothed", False)),
    )
