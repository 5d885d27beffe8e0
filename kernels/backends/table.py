"""Tables of measured times on disk: one JSON file for each GPU, host program and set of versions.

Ways, and what autotuning chose, are kept under names that hold the hash of the sources that they depend on: a changed
kernel is measured again, and the times of all others stay.

A table is read once in a process. Writers merge what they have measured into the file under a lock, and put the new
file in its place at once, so processes and ranks share it. Tables that came with this package (tables/) are read
beneath the user's own, and never written.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import autotune
from .. import cache as user_cache
from ..spec import LinearSpec
from .base import Backend
from .rule import BUCKETS, Times

SCHEMA = 3
SHIPPED = Path(__file__).with_name("tables")


@dataclass(frozen=True)
class Key:
    """What times depend on besides the linear. host: the program whose dense kernels they are compared with. The rest
    are versions, "" for what is not installed or has no part in it."""

    gpu: str
    capability: str
    host: str
    torch: str
    triton: str
    cusparselt: str
    vllm: str = ""

    @property
    def file(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return f"times-{digest}.json"

    @property
    def series(self) -> Key:
        """The key with major and minor versions alone, by which a shipped table is taken."""
        versions = {name: _series(getattr(self, name)) for name in ("torch", "triton", "cusparselt", "vllm")}
        return replace(self, **versions)


def _series(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])


@dataclass
class Table:
    """Times by linear, way and bucket, None where a way could not run; and what autotuning chose, by what it was for
    and octave of tokens; under versioned names (sources.py). beneath: of the tables that were shipped; only `times`
    and `choices` are written."""

    key: Key
    times: dict[str, dict[str, dict[int, float | None]]] = field(default_factory=dict)
    choices: dict[str, dict[int, int]] = field(default_factory=dict)
    beneath: list[Table] = field(default_factory=list)

    def of(self, linear: str) -> Times:
        found: dict[str, dict[int, float | None]] = {}
        for table in (*self.beneath, self):
            for way, times in table.times.get(linear, {}).items():
                found.setdefault(way, {}).update(times)
        return found

    def of_way(self, spec: LinearSpec, way: Backend) -> Mapping[int, float | None]:
        """Of one way of a linear, by bucket."""
        return self.of(way.timed_as(spec)).get(way.timed_name(), {})

    def put(self, linear: str, way: str, bucket: int, taken: float | None) -> None:
        rounded = None if taken is None else round(taken, 2)
        self.times.setdefault(linear, {}).setdefault(way, {})[bucket] = rounded

    def merge(self, other: Table) -> None:
        """What the other has wins."""
        for linear, ways in other.times.items():
            for way, times in ways.items():
                self.times.setdefault(linear, {}).setdefault(way, {}).update(times)
        for what, chosen in other.choices.items():
            self.choices.setdefault(what, {}).update(chosen)

    def text(self) -> str:
        """The bytes of the file: sorted, a line for each way of a linear."""

        def block(rows: list[str], indent: str) -> str:
            return "{\n" + ",\n".join(f"{indent} {row}" for row in rows) + f"\n{indent}}}" if rows else "{}"

        def numbers(found: dict[int, Any]) -> str:
            return json.dumps({str(number): found[number] for number in sorted(found)})

        linears = [
            f"{json.dumps(linear)}: "
            + block([f"{json.dumps(way)}: {numbers(times)}" for way, times in sorted(ways.items())], "  ")
            for linear, ways in sorted(self.times.items())
        ]
        choices = [f"{json.dumps(what)}: {numbers(chosen)}" for what, chosen in sorted(self.choices.items())]
        fields = {
            "schema": str(SCHEMA), "key": json.dumps(asdict(self.key), ensure_ascii=True),
            "times": block(linears, " "), "choices": block(choices, " "),
        }  # fmt: skip
        return block([f'"{name}": {value}' for name, value in fields.items()], "") + "\n"


def parse(data: bytes) -> Table:
    """ValueError, with the reason, if it is not a table of this schema."""
    try:
        found = json.loads(data)
        schema = found["schema"]
        if schema == SCHEMA:
            times = {
                linear: {way: {_bucket(number): _time(row[number]) for number in row} for way, row in ways.items()}
                for linear, ways in found["times"].items()
            }
            choices = {
                what: {_whole(octave): _whole(row[octave]) for octave in row} for what, row in found["choices"].items()
            }
            return Table(Key(**{name: _word(value) for name, value in found["key"].items()}), times, choices)
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"it is damaged: {error!r}") from error
    raise ValueError(f"its schema is {schema!r}, not {SCHEMA}")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} in its key")
    return value


def _bucket(number: str) -> int:
    if int(number) not in BUCKETS:
        raise ValueError(f"{number} tokens")
    return int(number)


def _time(taken: Any) -> float | None:
    if taken is None:
        return None
    if isinstance(taken, bool) or not 0 < float(taken) < float("inf"):
        raise ValueError(f"a time of {taken!r}")
    return float(taken)


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not 0 <= int(number) < 1 << 16:
        raise ValueError(f"a choice of {number!r}")
    return int(number)


_TABLES: dict[tuple[Path, Key], Table] = {}


def table_of(key: Key) -> Table:
    """The table of this process; read, with what autotuning chose, when it is first asked for."""
    place = (user_cache.path(), key)
    if place not in _TABLES:
        table = _own(key) or Table(key)
        table.beneath = shipped(key)
        for one in (*table.beneath, table):
            autotune.learn(key.gpu, one.choices)
        _TABLES[place] = table
    return _TABLES[place]


def save(table: Table) -> Path | None:
    """Merge the table into its file; None if there is no cache to write to, which was logged."""
    with user_cache.locked(table.key.file):
        merged = _own(table.key) or Table(table.key)
        table.choices = {**table.choices, **autotune.learned(table.key.gpu)}
        merged.merge(table)
        table.times, table.choices = merged.times, merged.choices
        return user_cache.write(table.key.file, merged.text().encode())


def _own(key: Key) -> Table | None:
    data = user_cache.read(key.file)
    if data is None:
        return None
    try:
        found = parse(data)
        if found.key != key:
            raise ValueError("it is of another GPU or other versions")
    except ValueError as error:
        user_cache.say_once(f"the table of times {user_cache.path() / key.file} is ignored, {error}")
        return None
    return found


def shipped(key: Key) -> list[Table]:
    """The tables of this package for such a GPU, host and series of versions."""
    found = []
    for path in sorted(SHIPPED.glob("*.json")):
        try:
            table = parse(path.read_bytes())
        except (OSError, ValueError) as error:
            user_cache.say_once(f"the table of times {path} is ignored, {error}")
            continue
        if table.key.series == key.series:
            found.append(table)
    return found


def key_of(device: torch.device, host: str, vllm: str = "") -> Key:
    """The key of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return Key(
        torch.cuda.get_device_name(device), f"{major}.{minor}", host, torch.__version__, installed("triton"),
        _cusparselt(), vllm,
    )  # fmt: skip


@cache
def installed(package: str) -> str:
    """Its version, "" if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@cache
def _cusparselt() -> str:
    from ..sparse_gemm import library

    try:
        return library.version(torch.cuda.current_device())
    except (library.LibraryError, RuntimeError, AssertionError):
        return ""
