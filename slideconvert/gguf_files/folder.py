"""Writes the model of a GGUF file as a folder in the Hugging Face layout, which everything else reads.

Weights are dequantized once, tensor by tensor; memory holds one tensor of a layer, or a piece of the embedding. An
interrupted folder is continued after its last complete layer.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import closing
from itertools import groupby
from pathlib import Path

from ..checkpoint.claim import claimed
from ..checkpoint.disk import BESIDE, free_bytes
from ..checkpoint.files import CARD, CONFIG, GENERATION, SINGLE, STAGING
from ..checkpoint.origin import GGUF_NOTE, origin_of
from ..checkpoint.snapshot import Snapshot
from ..checkpoint.staging import Staging, write_file, writing
from ..checkpoint.writer import Shard, Unit, WeightWriter
from ..errors import DiskFullError, InputError
from ..models.families import architecture_of
from ..progress import Progress, silent
from .container import GgufFile, open_gguf
from .model import TOKENS, GgufModel, read_model
from .record import record_bytes
from .tokenizer import write_tokenizer

CARD_FIELDS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
}
"""Fields of a model card, and those of GGUF that say the same."""


def cache_folder(named: Path | None) -> Path:
    """The folder of models made from GGUF files: in `named`, or in the folder of Hugging Face (HF_HOME)."""
    from huggingface_hub import constants

    return (named.expanduser() / "gguf" if named else Path(constants.HF_HOME) / "slideconvert" / "gguf").resolve()


def dequantized(
    path: Path, cache: Path | None = None, *, weights: bool = True, progress: Progress | None = None
) -> Snapshot:
    """The model of a GGUF file as a folder in `cache` (None: beside the cache of the Hub), made there unless it exists.

    The file is known by its path, size and time of change: a changed one gets a new folder. weights: False for
    config.json and the tokenizer alone, which suffice for a plan. Raises what `write_folder` does.
    """
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{weights}"
    name = f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = cache_folder(cache) / name
    if (folder / STAGING).exists() or not (folder / (SINGLE if weights else CONFIG)).is_file():
        write_folder(path, folder, weights=weights, progress=progress, resume=True)
    return Snapshot(folder, path.stem, None, origin_of(folder))


def write_folder(
    path: Path, out: Path, *, weights: bool = True, progress: Progress | None = None, resume: bool = False
) -> GgufModel:
    """Write the model of the GGUF file `path` to the new folder `out`; with resume, continue an interrupted one.

    weights: False for all files but the weights. InputError for a file that cannot be used and for a folder that is not
    empty, OutputError if the folder cannot be written.
    """
    before = _identity(path)
    file = open_gguf(path)
    model = read_model(file)
    shard = Shard(SINGLE, _units(model))
    _check_space(out, sum(spec.bytes for spec in shard.tensors) if weights else 0)
    with claimed(out) as claim:
        staging = Staging(out, {"gguf": str(path.resolve()), "identity": before}, resume=resume)
        try:
            with writing(out):
                _write_small_files(model, staging.path)
            if weights:
                _write_weights(model, shard, staging.path, progress or silent)
                os.utime(staging.path / SINGLE, ns=(before[1], before[1]))  # made again, a resumed run knows it
            if _identity(path) != before:
                raise InputError(f"{path} changed while it was read", hint="run the command again")
        except InputError:
            staging.discard()
            raise
        claim.check()
        staging.publish()
    return model


def _identity(path: Path) -> list[int]:
    """Size and time of the last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _units(model: GgufModel) -> tuple[Unit, ...]:
    """The tensors by layer, in the order in which they are written."""
    layer_of = architecture_of(model.config).layer_of
    grouped = groupby(model.specs, key=lambda spec: layer_of(spec.name))
    return tuple(Unit(f"{number}: layer {layer}", tuple(specs)) for number, (layer, specs) in enumerate(grouped))


def _check_space(out: Path, size: int) -> None:
    """InputError if the disk of `out` has less space than the folder needs."""
    free = free_bytes(out)
    if free < size + BESIDE:
        raise DiskFullError(
            f"{out}: the dequantized model needs {(size + BESIDE) / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free",
            hint="free disk space, or name a folder on another disk with --source-cache or HF_HOME",
        )


def _write_small_files(model: GgufModel, folder: Path) -> None:
    """config.json, generation_config.json, card, tokenizer, and the note on the origin."""
    write_file(folder / CONFIG, (json.dumps(model.config, indent=1) + "\n").encode())
    tokens = {name: model.config.get(name) for name in (f"{kind}_token_id" for kind in TOKENS)}
    told = {name: token for name, token in tokens.items() if token is not None}
    write_file(folder / GENERATION, (json.dumps(told, indent=1) + "\n").encode())
    write_file(folder / CARD, _card(model.file).encode())
    write_tokenizer(model.file, folder)
    write_file(folder / GGUF_NOTE, record_bytes(model.file.path, model.origin))


def _card(file: GgufFile) -> str:
    """A model card with what a derived model must repeat: licence and languages, if the file names them."""
    import yaml

    told = {name: file.fields[key] for name, key in CARD_FIELDS.items() if key in file.fields}
    return f"---\n{yaml.safe_dump(told) if told else ''}---\n"


def _write_weights(model: GgufModel, shard: Shard, folder: Path, progress: Progress) -> None:
    """The weights, layer by layer."""
    total, stage = sum(spec.bytes for spec in shard.tensors), f"read {model.file.path.name}"
    with closing(WeightWriter(folder, [shard])) as writer:
        remaining = writer.remaining
        done = total - sum(unit.bytes for unit in remaining)
        for unit in remaining:
            progress(stage, done, total)
            writer.write(unit, lambda spec: model.pieces(spec.name), {})
            done += unit.bytes
        progress(stage, done, total)
