"""Whether the files of a checkpoint are those of its record. The model card may be edited: it is not compared."""

from __future__ import annotations

from collections.abc import Iterator

from ..checkpoint.files import CARD, CHANNEL_ORDERS, CHANNEL_SCALES, CONFIG, INDEX, NEVER, is_companion
from ..checkpoint.reader import Checkpoint, read_json
from ..checkpoint.staging import file_sha256
from ..formats.record import Record
from ..runtime.slidesparse_record import SOURCES, bundle_faults, misplaced

LOADED = (".safetensors", *NEVER)
"""Suffixes of weights and code: loaders look for them by name, or take all that they find."""
LOADED_NAMES = (
    INDEX, CHANNEL_ORDERS, CHANNEL_SCALES, "adapter_config.json", "processor_config.json", "preprocessor_config.json"
)  # fmt: skip
LOADED_FOLDERS = ("additional_chat_templates/", "custom_generate/")
"""Further files that loaders read where they find them."""


def file_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    """Messages for files that are missing or changed, and for files beside them that loaders would read."""
    for name, digest in (record.files | record.reports).items():
        path = checkpoint.path / name
        if not path.is_file():
            if name not in record.reports:  # a report is for people, and may be deleted
                yield f"{name}: file is missing"
        elif file_sha256(path) != digest:
            yield f"{name}: sha256 differs from the record's {digest[:12]}…: the file was changed after conversion"
    yield from bundle_faults(checkpoint.path, record.kernels)
    yield from unlisted_faults(checkpoint, record)
    if (checkpoint.path / INDEX).is_file():
        total = read_json(checkpoint.path / INDEX).get("metadata", {}).get("total_size")
        if total != checkpoint.bytes:
            yield f"{INDEX}: total_size {total}, the tensors have {checkpoint.bytes} bytes"


def unlisted_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    """Messages for files that the record does not list, and that loaders may read."""
    for name in _unlisted(checkpoint, record):
        if _is_loaded(name):
            what = "a weight file" if name.endswith(".safetensors") else "a file that loaders may read and"
            yield f"{name}: {what} that the record does not list"


def file_notes(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    """What could not be compared with the record, and why."""
    if record.saved_again:
        yield (
            f"{record.saved_again} has saved the model again, and left out the sha256 of the files: weights, config "
            "and code were not compared with what was converted; slideconvert relayout writes a complete checkpoint"
        )
    if names := [name for name in _unlisted(checkpoint, record) if not _is_loaded(name)]:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield f"the record does not list {', '.join(names[:5])}{more}: not compared with anything"


def _unlisted(checkpoint: Checkpoint, record: Record) -> list[str]:
    """The files of the folder that the record does not list; none if it lists no files. Left out are hidden files, and
    code, which `bundle_faults` names."""
    listed = {*record.files, *record.reports, *record.kernels, CONFIG, CARD}
    folder = checkpoint.path
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) if record.files else ()
    return sorted(
        name
        for path in found
        if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)
        and (name := path.as_posix()) not in listed
        and (misplaced(name) or path.suffix not in SOURCES)
    )


def _is_loaded(name: str) -> bool:
    in_top = "/" not in name and (name.lower().endswith(LOADED) or is_companion(name) or name in LOADED_NAMES)
    return in_top or name.startswith(LOADED_FOLDERS)
