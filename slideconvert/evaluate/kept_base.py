"""The distributions of the first checkpoint (the base) on disk, so that it runs once for any number of others.

A safetensors file: tokens [n, k] I32 and log_probabilities [n, k] F32, the k most likely tokens of each position and
their natural logarithms; log_rest [n] F32, the mass of all others; losses [n] F64, of the tokens that came. Its
metadata say what it was made of. FP16 would halve it but round a log probability of 8 by 0.002, as much as all that
INT8 changes.

It is written and read in pieces, under a temporary name until it is whole. A file that nobody named has no name at
all, so that it disappears with the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..checkpoint.container import TensorSpec, header_bytes, read_header, read_metadata
from ..checkpoint.files import CONFIG
from ..checkpoint.json_text import parse_json
from ..checkpoint.reader import TORCH_DTYPES, Checkpoint
from ..checkpoint.staging import file_sha256, writing
from ..errors import DiskFullError, InputError
from ..progress import Progress
from .divergence import Top

TOP = 1024
"""Default number of tokens that are kept for each position."""
LIMIT = 4_000_000_000
"""Default for the most bytes of a file."""
METADATA = "slideconvert_base"


@dataclass(frozen=True)
class Origin:
    """What a file was made of.

    checkpoint: sha256 over config.json and weights; "" for a file without a name. activations: "quantized" or "float".
    text: its name. tokens: sha256 of the tokens [sequences, length]. vocabulary: tokens of the model. top: tokens that
    are kept for each position, at most the vocabulary.
    """

    checkpoint: str
    activations: str
    text: str
    tokens: str
    sequences: int
    length: int
    vocabulary: int
    top: int

    @property
    def positions(self) -> int:
        """Predicted tokens: every one but the first of each sequence."""
        return self.sequences * (self.length - 1)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the file in their order."""
        n, k = self.positions, self.top
        return (
            TensorSpec("losses", "F64", (n,)),
            TensorSpec("tokens", "I32", (n, k)),
            TensorSpec("log_probabilities", "F32", (n, k)),
            TensorSpec("log_rest", "F32", (n,)),
        )


def kept_bytes(sequences: int, length: int, top: int, vocabulary: int) -> int:
    """Bytes of the tensors that a base takes: 8 for each kept token of a position and 12 for each position."""
    origin = Origin("", "", "", "", sequences, length, vocabulary, min(top, vocabulary))
    return sum(spec.bytes for spec in origin.specs)


def check_kept_bytes(
    sequences: int,
    length: int,
    top: int,
    vocabulary: int,
    limit: int,
    hint: str = "lower --top or --sequences, or raise --base-gb",
) -> None:
    """InputError with `hint` if a base takes more than `limit` bytes."""
    need = kept_bytes(sequences, length, top, vocabulary)
    if need > limit:
        raise InputError(
            f"the base's distributions take {need / 1e9:.3g} GB, the limit is {limit / 1e9:.3g}: {sequences} sequences "
            f"of {length - 1} positions with {min(top, vocabulary)} tokens each",
            hint=hint,
        )


def tokens_sha256(tokens: Tensor) -> str:
    """sha256 of tokens [sequences, length] int64."""
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()


def checkpoint_sha256(checkpoint: Checkpoint, progress: Progress) -> str:
    """sha256 over the names and the sha256 of config.json and all weight files."""
    files, found = [checkpoint.path / CONFIG, *checkpoint.shards], hashlib.sha256()
    for number, path in enumerate(files):
        progress("hash", number, len(files))
        found.update(f"{path.name} {file_sha256(path)}\n".encode())
    progress("hash", len(files), len(files))
    return found.hexdigest()


class KeptBase:
    """An open file of distributions. complete: whether it holds them all, so that the base need not run."""

    def __init__(self, file: BinaryIO, origin: Origin, start: int, where: Path, *, complete: bool) -> None:
        self.origin, self.complete = origin, complete
        self._file, self._where, self._done = file, where, 0
        self._offsets, offset = {}, start
        for spec in origin.specs:
            self._offsets[spec.name] = offset
            offset += spec.bytes

    def append(self, top: Top, losses: Tensor) -> None:
        """Write the next positions: their Top, and their losses [n] float64."""
        values = (losses, top.tokens, top.log_p, top.log_rest)
        for spec, tensor in zip(self.origin.specs, values, strict=True):
            data = tensor.cpu().to(TORCH_DTYPES[spec.dtype]).contiguous().numpy().data
            with _writing(self._where):
                self._file.seek(self._place(spec, self._done))
                self._file.write(data)
        self._done += len(losses)
        self.complete = self._done == self.origin.positions

    def losses(self) -> Tensor:
        """[sequences, length - 1] float64, in nats."""
        return self._whole(self.origin.specs[0])

    def mass(self) -> Tensor:
        """[sequences, length - 1] float64: the probability of the kept tokens together."""
        return -torch.expm1(self._whole(self.origin.specs[-1]))

    def top(self, start: int, stop: int) -> Top:
        """The distributions of positions start to stop, which count through all sequences."""
        _, tokens, log_p, log_rest = (self._read(spec, start, stop) for spec in self.origin.specs)
        found = Top(tokens.long(), log_p.double(), log_rest.double())
        if found.tokens.numel() and not 0 <= found.tokens.min() <= found.tokens.max() < self.origin.vocabulary:
            raise InputError(f"{self._where}: a token outside the vocabulary", hint="the file is damaged: delete it")
        return found

    def _whole(self, spec: TensorSpec) -> Tensor:
        return self._read(spec, 0, self.origin.positions).double().view(self.origin.sequences, -1)

    def _place(self, spec: TensorSpec, position: int) -> int:
        return self._offsets[spec.name] + position * spec.bytes // self.origin.positions

    def _read(self, spec: TensorSpec, start: int, stop: int) -> Tensor:
        """Positions start to stop of a tensor of the file."""
        self._file.seek(self._place(spec, start))
        count = self._place(spec, stop) - self._place(spec, start)
        data = bytearray(self._file.read(count))
        if len(data) != count:
            raise InputError(f"{self._where}: ended inside {spec.name}", hint="did the file change?")
        return torch.frombuffer(data, dtype=TORCH_DTYPES[spec.dtype]).view(stop - start, *spec.shape[1:])


@contextmanager
def kept_base(origin: Origin, path: Path | None, scratch: Path | None) -> Iterator[KeptBase]:
    """The file of a base: the one at `path` if it exists, else a new one, to be filled within the block.

    path: None for a file without a name in `scratch` (None: the folder for temporary files). A new file gets its name
    when the block ends and it is complete. InputError for a file that was made of something else, is damaged or is none
    of ours (no file is overwritten), and for too little disk space.
    """
    with ExitStack() as stack:
        if path is not None and path.exists():
            start = _check(path, origin)
            file = stack.enter_context(path.open("rb"))
            yield KeptBase(file, origin, start, path, complete=True)
            return
        folder = path.absolute().parent if path else (scratch or Path(tempfile.gettempdir()))
        if not folder.is_dir():
            raise InputError(f"--keep-base {path}: no folder {folder}", hint="make it, or name another file")
        head = header_bytes(origin.specs, {METADATA: json.dumps(asdict(origin))})
        need, free = len(head) + sum(spec.bytes for spec in origin.specs), shutil.disk_usage(folder).free
        if need > free:
            raise DiskFullError(
                f"{folder}: {free / 1e9:.3g} GB are free, the base's distributions take {need / 1e9:.3g}",
                hint="lower --top or --sequences, or name a file on another disk with --keep-base",
            )
        with _writing(folder):
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial") if path else None
            if partial:
                stack.callback(partial.unlink, missing_ok=True)
                new: BinaryIO = stack.enter_context(partial.open("w+b"))
            else:
                new = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            new.write(head)
        kept = KeptBase(new, origin, len(head), path or folder, complete=False)
        yield kept
        if path and partial and kept.complete:
            with _writing(folder):
                new.flush()
                os.fsync(new.fileno())
                partial.replace(path)


def _writing(where: Path) -> AbstractContextManager[None]:
    return writing(where, after_full="free disk space or lower --top, and start again")


def _check(path: Path, origin: Origin) -> int:
    """The offset of the first tensor of an existing file. InputError unless it was made of the same."""
    if not path.is_file():
        raise InputError(f"--keep-base {path}: not a file", hint="name a new file")
    placed = read_header(path)
    try:
        made = Origin(**parse_json(read_metadata(path)[METADATA]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--keep-base {path}: not a file of a base", hint="name a new file") from error
    differing = [one.name for one in fields(Origin) if getattr(made, one.name) != getattr(origin, one.name)]
    if differing == ["text"]:  # the same tokens under another name
        differing = []
    if differing:
        told = "; ".join(f"{name} {_short(made, name)}, not {_short(origin, name)}" for name in differing)
        raise InputError(
            f"--keep-base {path} was made of something else: {told}",
            hint="measure with the same settings, name another file, or delete this one",
        )
    if {name: one.spec for name, one in placed.items()} != {spec.name: spec for spec in origin.specs}:
        raise InputError(f"--keep-base {path}: other tensors than its metadata say", hint="delete it: it is damaged")
    return placed[origin.specs[0].name].offset


def _short(origin: Origin, name: str) -> str:
    value = str(getattr(origin, name))
    return f"{value[:12]}…" if len(value) == 64 else value
