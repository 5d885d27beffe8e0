"""The record that a SlideSparse checkpoint carries in config.json, and the code that it carries beside its weights.

The CODE_FILES, this one among them, are copied into every checkpoint, so that transformers can run it without
slideconvert; here they serve slideconvert itself. Standard library only, nothing of the package.
Errors are ValueErrors of one line: where, what, the numbers, and the way out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

RECORD = "slidesparse_config"
"""Root key of config.json: how each linear was converted."""
SETTINGS = "slidesparse_runtime"
"""Optional root key of config.json, which the user sets: the fields of `RuntimeSettings`. Variables of the environment
come before it: SLIDESPARSE_BACKEND, SLIDESPARSE_MEMORY, SLIDESPARSE_MEASURE, SLIDESPARSE_FUSE."""
SWITCH = {"true": True, "1": True, "false": False, "0": False}
SAVED_AGAIN = "saved_again"
"""Field of the record: which library saved the model again. Its record has no hashes: they belong to another folder."""
HASHES = ("files", "kernels", "reports", "sha256")
"""Fields of the record that belong to one folder: sha256 of its files by path, and of config.json itself."""
FORMAT_VERSION = 1
SLIDE_FORMAT = "slide-packed"
"""The compressed-tensors format of the slide layout; stock loaders refuse it, as they must."""
GQS_FORMAT = "gqs-packed"
"""The compressed-tensors format of the gqs layout."""
LAYOUTS = SLIDE, GQS, DENSE = "slide", "gqs", "dense"
"""How the linears of a checkpoint are stored: as windows, as block sparse rows, or as stock loaders read them."""
FORMATS = {SLIDE: SLIDE_FORMAT, GQS: GQS_FORMAT}
"""The compressed-tensors format of each layout that only we read."""
SCHEMES = ("int8", "fp8")
GROUPED = {"w4a16": (4, 16), "w4a8": (4, 8), "w8a16": (8, 16)}
"""Schemes with a scale for every group of columns: bits of a weight, and of an activation."""
METHOD = "compressed-tensors"

KERNELS = "kernels"
SOURCES = (".py", ".c", ".h", ".cu", ".cuh", ".json")
"""Suffixes of files that Python or a compiler may run, and of the tables by which kernels are chosen."""
CODE_FILES = (
    "modeling_slidesparse.py",
    "slidesparse_record.py",
    "slidesparse_checks.py",
    "slidesparse_fusion.py",
    "slidesparse_patterns.py",
)
AUTO_MAP = {"AutoModelForCausalLM": "modeling_slidesparse.SlideSparseForCausalLM"}
REINSTALL_HINT = "get the checkpoint again, or convert the model again"


@dataclass(frozen=True)
class RecordedLinear:
    """A quantized linear of N = rows, K = columns as the record describes it.

    layout: how its tensors lie in the checkpoint. length: L of 2:L, None for 2:inf; of schemes with a scale per row.
    size: the columns that share a scale, 0 for a scale per row; with it kept, the groups that the pattern keeps, and
    symmetric, whether there are no zero points.
    """

    rows: int
    columns: int
    scheme: str
    layout: str
    length: int | None = None
    size: int = 0
    kept: int = 0
    symmetric: bool = True

    @property
    def numbers(self) -> str:
        """Its kind of numbers, for messages."""
        return group_numbers(self.scheme, self.size, symmetric=self.symmetric) if self.size else self.scheme

    @property
    def kind(self) -> str:
        """Its kind of spec: a word of KINDS in specs.py of the kernels."""
        return "group" if self.size else "slide"

    @property
    def spec(self) -> str:
        """The text form of its spec, which specs.py of the kernels reads."""
        if not self.size:
            return f"{self.kind} {self.rows} {self.columns} {self.length or 'inf'} {self.scheme} {self.layout}"
        bits, activation_bits = GROUPED[self.scheme]
        zeros = "symmetric" if self.symmetric else "asymmetric"
        numbers = f"{self.rows} {self.columns} {self.size} {bits} {self.kept}"
        return f"{self.kind} {numbers} {zeros} {activation_bits} {self.layout}"


def group_numbers(scheme: str, size: int, *, symmetric: bool) -> str:
    """A scheme with a scale for every `size` columns, for messages."""
    return f"{scheme} in {'symmetric' if symmetric else 'asymmetric'} groups of {size}"


def packed_layouts(quantization: Mapping[str, Any]) -> list[str]:
    """The layouts of a quantization_config that only we read; stock loaders refuse them."""
    groups = quantization.get("config_groups") or {}
    words = {quantization.get("format"), *(group.get("format") for group in groups.values())}
    return [layout for layout, word in FORMATS.items() if word in words]


def is_ours(quantization: Any, record: Any) -> bool:
    """Whether config.json's quantization_config and record are those of a SlideSparse checkpoint, sound or not."""
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != METHOD:
        return False
    return record is not None or bool(packed_layouts(quantization))


def read_linears(record: Any, quantization: Mapping[str, Any], where: str) -> tuple[str, dict[str, RecordedLinear]]:
    """The layout, and the quantized linears by name. ValueError if the record is missing, newer than us or broken."""
    packed = packed_layouts(quantization)
    if record is None:
        raise ValueError(
            f"{where}: weights in the {' and '.join(packed)} layout, but config.json has no {RECORD} (put the "
            "config.json back that slideconvert wrote, or convert the model again)"
        )
    try:
        version = int(record["format_version"])
        layers = record["layers"] if version <= FORMAT_VERSION else {}
        layout = record["layout"]
        linears = {name: _linear(entry, layout) for name, entry in layers.items() if entry["scheme"] != "bf16"}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: unreadable {RECORD} ({error!r}) ({REINSTALL_HINT})") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where}: format version {version}, this code reads up to {FORMAT_VERSION} (upgrade slideconvert)"
        )
    known = (*SCHEMES, *GROUPED)
    unknown = [f"{name}: scheme {linear.scheme!r}" for name, linear in linears.items() if linear.scheme not in known]
    stored = {linear.layout for linear in linears.values()}
    if layout not in LAYOUTS or stored - {DENSE} != set(packed):
        unknown.append(f"layout {layout!r} with format {quantization.get('format')!r}")
    if unknown:
        raise ValueError(f"{where}: {RECORD} says {unknown[0]}, which cannot be ({REINSTALL_HINT})")
    return layout, linears


def _linear(entry: Mapping[str, Any], layout: str) -> RecordedLinear:
    rows, columns = map(int, entry["shape"])
    scheme, pattern = entry["scheme"], entry["pattern"]
    if scheme in GROUPED:
        size = int(entry["group_size"])
        if size < 1 or columns % size:
            raise ValueError(f"group_size {size} of {columns} columns")
        whole = rows * columns // size
        by_groups, kept = pattern.startswith(f"1x{size}:"), int(entry.get("kept_groups", whole))
        if by_groups != ("kept_groups" in entry) or not 0 <= kept <= whole:
            raise ValueError(f"pattern {pattern} with group_size {size} and kept_groups {kept} of {whole}")
        found = layout if layout == GQS and by_groups else DENSE
        return RecordedLinear(rows, columns, scheme, found, size=size, kept=kept, symmetric=bool(entry["symmetric"]))
    zeros, _, length = pattern.partition(":")
    if zeros != "2" or (length != "inf" and (int(length) < 4 or int(length) % 2)):
        raise ValueError(f"pattern {pattern}")
    found = layout if layout == SLIDE else DENSE
    return RecordedLinear(rows, columns, scheme, found, length=None if length == "inf" else int(length))


@dataclass(frozen=True)
class RuntimeSettings:
    """How the user wants linears to run.

    backend: auto; both, which is auto with two prepared weights; or the name of a backend. In a checkpoint with several
    kinds of linears, kinds without a backend of that name use auto. memory: what a second prepared weight of a linear
    may take, as a share of the packed weight. measure: the seconds that loading may spend on measuring what no table of
    times has; 0 for none. fuse: whether norms and gated activations are computed in one pass with the quantization
    behind them; None: wherever that is possible.
    """

    backend: str = "auto"
    memory: float = 0.0
    measure: float = 120.0
    fuse: bool | None = None

    def of(self, family: Iterable[str]) -> RuntimeSettings:
        """For linears that have the backends of `family`."""
        known = self.backend == "both" or self.backend in family
        return self if known else replace(self, backend="auto")


def read_settings(settings: Any, families: Iterable[Iterable[str]], where: str) -> RuntimeSettings:
    """The settings of config.json and of the environment. ValueError for unknown keys and values.

    families: the backends of every kind of linear in the checkpoint.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f'{where}: {SETTINGS} is {settings!r}, an object was expected (write {{"backend": "auto"}})')
    backends = ("auto", "both", *dict.fromkeys(name for family in families for name in family))
    known = [field.name for field in fields(RuntimeSettings)]
    words: dict[str, Any] = {}
    for word, value in (settings or {}).items():
        if word not in known:
            raise ValueError(f"{where}: {SETTINGS} has the unknown key {word!r} (known: {', '.join(known)})")
        words[word] = _setting(word, value, backends, f"{where}: {SETTINGS} asks for {word} {value!r}")
    for word in known:
        name = f"SLIDESPARSE_{word.upper()}"
        if value := os.environ.get(name):
            words[word] = _setting(word, value, backends, f"{name} is {value!r}")
    return RuntimeSettings(**words)


def _setting(word: str, value: Any, backends: Iterable[str], what: str) -> Any:
    if word == "backend":
        if value not in backends:
            raise ValueError(f"{what} (use one of {', '.join(backends)})")
        return str(value)
    if word == "fuse":
        if str(value).lower() not in SWITCH:
            raise ValueError(f"{what} (use true or false)")
        return SWITCH[str(value).lower()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise ValueError(f"{what} (use a number from 0 on)")
    return number


def code_hashes(record: Mapping[str, Any], where: str) -> Mapping[str, str]:
    """The record's kernels, sha256 of the code by path; empty if the model was saved again. ValueError without them."""
    if record.get(SAVED_AGAIN):
        return {}
    hashes = record.get(KERNELS)
    if not isinstance(hashes, Mapping) or not hashes:
        raise ValueError(f"{where}: {RECORD} has no sha256 of the kernels: it is damaged ({REINSTALL_HINT})")
    return hashes


def saved_again(record: Mapping[str, Any], library: str) -> dict[str, Any]:
    """The record of a model that `library` saves again: without the hashes, which it would not bring up to date."""
    return {key: value for key, value in record.items() if key not in HASHES} | {SAVED_AGAIN: library}


def bundle_faults(folder: Path, hashes: Mapping[str, str], *, complete: bool = True) -> Iterator[str]:
    """The faults of the code in `folder`. hashes: the record's kernels, sha256 by path.

    complete: whether a listed file must be there; not so in a cache, which fetches what is asked for. Without
    hashes (transformers saved the model again) there is nothing to compare with.
    """
    for name, digest in hashes.items():
        if fault := misplaced(name):
            yield fault
        elif (folder / name).is_file():
            yield from changed((folder / name).read_bytes(), name, digest)
        elif complete:
            yield f"{name}: file is missing"
    if hashes:
        beside = [folder / name for name in CODE_FILES]
        for path in sorted([*beside, *(folder / KERNELS).rglob("*")]):
            name = path.relative_to(folder).as_posix()
            if name not in hashes and path.suffix in SOURCES and path.is_file():
                yield f"{name}: code that the record does not list"


def changed(data: bytes, name: str, digest: str) -> Iterator[str]:
    """The fault of a file whose bytes are not those of the record."""
    if hashlib.sha256(data).hexdigest() != digest:
        yield f"{name}: sha256 differs from the record's {digest[:12]}…: the file was changed after conversion"


def misplaced(name: str) -> str:
    """The fault of a path where no code of a checkpoint belongs, such as one outside its folder; else ""."""
    path = PurePosixPath(name)
    inside = name in CODE_FILES or path.parts[:1] == (KERNELS,)
    return "" if inside and ".." not in path.parts and "\\" not in name else f"{name}: no place for a checkpoint's code"
