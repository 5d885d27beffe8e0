"""Whether config.json is what the conversion wrote, and describes the source's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..checkpoint.files import CONFIG
from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..formats.quantization_config import quantization_config
from ..formats.record import Record, config_digest
from ..models.families import architecture_of, decoder_linears
from ..models.load import model_config
from ..runtime.slidesparse_record import AUTO_MAP, RECORD

WRITERS = ("transformers_version", "_name_or_path")
"""Fields that say who wrote a config.json, and from where."""


def config_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    """Messages for changes of config.json, and for contradictions between it and its record; none if it is sound."""
    config, raw = checkpoint.config, checkpoint.config[RECORD]
    names = [linear.name for linear in decoder_linears(config)]
    unknown = sorted(record.linears.keys() - set(names))
    if unknown:
        yield f"{CONFIG}: record of {unknown[0]}, which the model does not have"
    for name, linear in record.linears.items():
        try:
            given, wanted = raw["layers"][name], linear.to_json(record.layout)
        except (ValueError, InputError) as error:
            yield f"{CONFIG}: record of {name}: {error}"
            continue
        for key in sorted(given.keys() | wanted.keys()):
            if given.get(key) != wanted.get(key):
                yield f"{CONFIG}: record of {name}: {key} is {given.get(key)}, its pattern gives {wanted.get(key)}"
    head = architecture_of(config).head
    untouched = [head, *(name for name in names if name not in record.linears)]
    if config.get("quantization_config") != quantization_config(record.linears, untouched, record.layout):
        yield f"{CONFIG}: quantization_config does not agree with the record of the linears"
    if config.get("auto_map") != (AUTO_MAP if record.kernels else None):
        yield f"{CONFIG}: auto_map is {config.get('auto_map')}, which names other code than that of the record"
    if not record.saved_again and not {"reports", "sha256"} <= raw.keys():
        yield f"{CONFIG}: no sha256 of itself or of the reports: damaged, or converted by an earlier slideconvert"
    elif not record.saved_again and raw["sha256"] != config_digest(config):
        yield f"{CONFIG}: its sha256 differs from the record's: the file was changed after conversion"


def source_faults(checkpoint: Checkpoint, source: Checkpoint) -> Iterator[str]:
    """Messages for fields in which transformers reads another model from config.json than from the source's."""
    ours, theirs = _as_read(checkpoint), _as_read(source)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield f"{CONFIG}: {key} is {ours.get(key)}, the source has {theirs.get(key)}"


def _as_read(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of the model, each with its default: a library that saves a model again writes others than it read."""
    fields: dict[str, Any] = model_config(checkpoint).to_dict()
    return {key: value for key, value in fields.items() if key not in WRITERS}
