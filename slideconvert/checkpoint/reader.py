"""Read a checkpoint folder lazily: opening checks every header, and tensors are read on demand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, printable
from .container import Placed, TensorSpec, read_header
from .files import CONFIG, INDEX, PICKLES, SINGLE, STAGING, check_link, is_companion
from .json_text import parse_json
from .lock import writer_of
from .shard_store import Folder, ShardStore

PIECE_ELEMENTS = 1 << 25
LONGEST = 255
"""Bytes of a file name, at most."""

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: its config.json and the position of each tensor. No tensor is kept in memory.

    shard_store: opens the weight files, which need not be in the folder. opened: what identifies each file of the
    folder that a conversion reads, when the checkpoint was opened.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Placed]
    shard_store: ShardStore = field(default_factory=Folder)
    opened: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a folder, checking every shard's header against its size and the index.

        InputError for anything missing, truncated, unsafe (`../`), unfinished, or stored as pickles.
        """
        if not path.is_dir():
            raise InputError(f"{path} is not a folder", hint="use a checkpoint folder or a Hub id")
        if (path / STAGING).exists():
            if writer := writer_of(path):
                raise InputError(f"{path}: {writer} is writing to this folder", hint="wait until it ends")
            raise InputError(
                f"{path} is an unfinished conversion",
                hint="finish it with --resume, or delete it and start again",
            )
        opened = _identities(path)  # before the first byte is read
        return cls(path, read_json(path / CONFIG), locate_tensors(path), opened=opened)

    def check_unchanged(self) -> None:
        """Raise InputError if a file of the folder was changed, replaced, removed or added since it was opened."""
        now = _identities(self.path) if self.opened else {}
        changed = sorted(name for name in {*now, *self.opened} if now.get(name) != self.opened.get(name))
        if changed:
            raise InputError(
                f"{self.path / changed[0]} changed while it was read ({len(changed)} such files)",
                hint="nothing is published from two states of a model: convert again into a new folder",
            )

    @property
    def shards(self) -> list[Path]:
        """The weight files, in order of name."""
        return sorted({placed.file for placed in self.tensors.values()})

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(placed.spec.bytes for placed in self.tensors.values())

    def spec(self, name: str) -> TensorSpec:
        """dtype and shape of a tensor. InputError if the checkpoint has no tensor of that name."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: tensor {name} is missing", hint="the checkpoint is incomplete")
        return self.tensors[name].spec

    def read(self, name: str) -> Tensor:
        """A whole tensor, in new memory. InputError if it is missing or its file cannot be read."""
        return self.read_flat(name, 0, math.prod(self.spec(name).shape)).view(self.spec(name).shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor, flattened, in pieces of at most PIECE_ELEMENTS: an embedding may be larger than all other data."""
        count = math.prod(self.spec(name).shape)
        for start in range(0, count, PIECE_ELEMENTS):
            yield self.read_flat(name, start, min(start + PIECE_ELEMENTS, count))

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start … stop of a tensor, flattened.

        Reads the file instead of mapping it: a map would count every page as memory of this process, and a file that
        shrinks while it is mapped would kill the process.
        """
        placed = self.tensors[name]
        dtype = TORCH_DTYPES[placed.spec.dtype]
        out = torch.empty(stop - start, dtype=dtype)
        view = out.view(torch.uint8).numpy().data
        try:
            with self.shard_store.open_shard(placed.file) as file:
                file.seek(placed.offset + start * dtype.itemsize)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise InputError(f"{placed.file}: ended inside tensor {name}", hint="did the file change?")
                    done += count
        except OSError as error:
            raise InputError(
                f"{placed.file}: cannot be read ({error.strerror})", hint="did the file change?"
            ) from error
        return out


def _identities(path: Path) -> dict[str, tuple[int, ...]]:
    """Size, time of the last change and inode of the files of a folder that a conversion reads, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for file in path.iterdir():
        if not (file.name in (CONFIG, INDEX) or file.suffix == ".safetensors" or is_companion(file.name)):
            continue
        check_link(file)
        if file.is_file():
            status = file.stat()
            found[file.name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. InputError if the file is missing or contains anything else."""
    if not path.is_file():
        raise InputError(f"{path} is missing", hint="give a folder in the Hugging Face layout")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint="check its permissions") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})", hint="download or copy it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected", hint="download or copy it again")
    return value


def locate_tensors(path: Path) -> dict[str, Placed]:
    """Every tensor of the checkpoint in `path`, by name, from the index or the single file. Raises InputError."""
    if (path / INDEX).is_file():
        weight_map = read_index(path / INDEX)
        check_single(path, weight_map, single=(path / SINGLE).is_file())
        _check_present(path, set(weight_map.values()))
        return by_index(path, weight_map, read_header)
    if (path / SINGLE).is_file():
        return read_header(path / SINGLE)
    found = sorted(path.glob("*.safetensors"))
    if found:
        raise InputError(
            f"{path}: {len(found)} safetensors files ({found[0].name} …) but neither {SINGLE} nor {INDEX}",
            hint="add the index file: it shows whether shards are missing",
        )
    pickles = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(PICKLES))
    if pickles:
        raise InputError(
            f"{path}: weights are pickles ({', '.join(pickles[:3])}), which can run code when opened",
            hint="get the safetensors version of the model, or convert it to safetensors in a place you trust",
        )
    raise InputError(f"{path}: no safetensors weights", hint="give a folder in the Hugging Face layout")


def read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, from an index. InputError for an invalid index and for unsafe names."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: no weight_map", hint="download or copy it again")
    strange = [name for name in weight_map.values() if not isinstance(name, str)]
    if strange:
        raise InputError(f"{path}: maps a tensor to {str(strange[0])[:40]}, not to a file", hint="download it again")
    odd = sorted(name for name in set(weight_map.values()) if len(name.encode()) > LONGEST or printable(name) != name)
    if odd:
        raise InputError(f"{path}: {printable(odd[0])[:40]} … is no name of a file", hint="download it again")
    unsafe = sorted(name for name in set(weight_map.values()) if PurePosixPath(name).name != name or "\\" in name)
    if unsafe:
        raise InputError(f"{path}: names a file outside the folder: {unsafe[0]}", hint="do not trust this index")
    return weight_map


def check_single(path: Path, weight_map: dict[str, str], *, single: bool) -> None:
    """InputError if there is a single file beside an index of other files: loaders disagree on which of them counts."""
    if single and SINGLE not in weight_map.values():
        raise InputError(
            f"{path}: {SINGLE} beside {INDEX}, which names other files: loaders differ in which they read",
            hint="delete whichever is out of date, the single file or the index with its shards",
        )


def _check_present(path: Path, names: set[str]) -> None:
    absent = [name for name in sorted(names) if not (path / name).is_file()]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} of {len(names)} shards are missing: {', '.join(absent[:3])}",
            hint="download the checkpoint again",
        )


def by_index(path: Path, weight_map: dict[str, str], header: Callable[[Path], dict[str, Placed]]) -> dict[str, Placed]:
    """The position of every tensor of an index. header: reads the header of a shard, like `read_header`."""
    headers = {name: header(path / name) for name in sorted(set(weight_map.values()))}
    lost = [tensor for tensor, shard in weight_map.items() if tensor not in headers[shard]]
    if lost:
        raise InputError(
            f"{path / INDEX}: maps {lost[0]} to {weight_map[lost[0]]}, which does not contain it "
            f"({len(lost)} such tensors)",
            hint="index and shards do not belong together: download again",
        )
    return {tensor: headers[shard][tensor] for tensor, shard in weight_map.items()}
