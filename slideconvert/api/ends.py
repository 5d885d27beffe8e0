"""The two ends of a job: the source that it opens, and the folder that it writes to."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import ranks
from ..allocate.choose import Target
from ..checkpoint.files import STAGING
from ..checkpoint.reader import Checkpoint
from ..checkpoint.snapshot import Snapshot
from ..checkpoint.staging import WORK
from ..errors import InputError
from ..gguf_files.source import gguf_file
from ..hub.source import check_remote, is_hub_id, open_source
from ..progress import Progress, Stopwatch
from .options import CalibrationOptions, OutputOptions, SourceOptions, WriteOptions


def check_output(source: str | Path, out: Path | None, options: OutputOptions) -> None:
    """InputError for options of the output that do not go together, or with the source. out: None in a plan that names
    no output."""
    for name in ("sequences", "text_column"):
        if getattr(options, name) is not None and not options.text:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} belongs to --text", hint="name the text to measure on, or omit it")
    if not isinstance(options, CalibrationOptions):
        for given, needs in (("max_kl", options.text), ("max_output_error", None)):
            if getattr(options, given) is not None and not needs:
                flag = f"--{given.replace('_', '-')}"
                raise InputError(f"{flag} has no effect: nothing is calibrated or measured here", hint="omit it")
    if options.overwrite and options.resume:
        raise InputError("--overwrite and --resume exclude each other", hint="give one of them")
    if options.overwrite and isinstance(options, SourceOptions) and options.low_disk and not options.source_cache:
        raise InputError("--overwrite and --low-disk", hint="give a folder for shards with --source-cache")
    if out is not None:
        _check_folder(source, out, options)
    elif options.overwrite or options.resume:
        flag = "--overwrite" if options.overwrite else "--resume"
        raise InputError(f"{flag} has no effect: no output is named", hint="name the folder OUT, or omit it")


def _check_folder(source: str | Path, out: Path, options: OutputOptions) -> None:
    if options.overwrite and Path(source).exists() and Path(source).resolve() == out.resolve():
        raise InputError(f"--overwrite: {out} is the source itself", hint="name another folder")
    check_other_name(source, out)


def refuse_several_ranks(options: OutputOptions, target: Target | None) -> None:
    """InputError for what only a single process does, if there are several ranks."""
    if ranks.count() == 1:
        return
    if target:
        raise InputError(
            f"a target to choose patterns for, on {ranks.count()} ranks: one process measures the patterns",
            hint="run slideconvert allocate first, and convert with its recipe",
        )
    if isinstance(options, SourceOptions) and options.low_disk:
        raise InputError(
            f"--low-disk on {ranks.count()} ranks: each would fetch shards of its own",
            hint="download the source first, or convert in one process",
        )
    if options.overwrite:
        raise InputError(f"--overwrite on {ranks.count()} ranks", hint="name a new folder, or empty this one")


def check_other_name(source: str | Path, out: Path) -> None:
    """InputError for an output folder of the name of a Hub id that is the source."""
    if Path(source).absolute() == out.absolute() and not out.exists():
        raise InputError(
            f"{out} is the name of the source, too",
            hint="name another folder: this one would hide the model on the Hub",
        )


def check_source(source: str, options: SourceOptions) -> None:
    """InputError for options that have no effect on a source that is on the disk already."""
    if options.source_cache and not (is_hub_id(source) or gguf_file(source)):
        raise InputError(f"--source-cache: {source} is not a Hub id", hint="omit it; a local folder is read in place")
    if options.low_disk:
        check_remote(source)


@contextmanager
def opened(source: str, out: Path, options: WriteOptions, progress: Progress) -> Iterator[tuple[Snapshot, Checkpoint]]:
    """The source of a conversion into `out`. Shards of --low-disk stay as long as the conversion can be resumed."""
    if not isinstance(options, SourceOptions):
        yield open_source(source, progress=progress)
        return
    check_source(source, options)
    cache = options.source_cache
    shards = shards_folder(out, cache) if options.low_disk else None
    aside = progress.aside if isinstance(progress, Stopwatch) else progress  # shards are fetched from other threads
    try:
        yield open_source(source, revision=options.revision, cache=cache, shards=shards, progress=aside)
    finally:
        if shards and not (out / STAGING).exists():
            shutil.rmtree(shards, ignore_errors=True)


def shards_folder(out: Path, source_cache: Path | None) -> Path:
    """Where --low-disk puts shards: beside the unfinished output, or in a folder of this job's in --source-cache."""
    if source_cache is None:
        return out.absolute() / STAGING / WORK / "source"
    job = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    return source_cache.expanduser().absolute() / f"low-disk-{job}"
