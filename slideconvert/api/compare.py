"""The function that puts finished checkpoints side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..allocate.speed import DEFAULT_TOKENS
from ..checkpoint.reader import Checkpoint
from ..checkpoint.staging import check_new_file, write_file, writing
from ..compare.entry import Entry, read_entry
from ..compare.page import render
from ..compare.quality import Quality, measured_quality
from ..compare.result import Compared, side_by_side
from ..errors import InputError
from ..evaluate.compare import TextProtocol, measure
from ..hub.source import open_for_planning, open_source
from ..progress import Progress, silent
from .options import CompareOptions
from .settings import choose_device
from .target import times_of


def compare(
    ckpts: Sequence[str | Path],
    options: CompareOptions = CompareOptions(),
    *,
    progress: Progress = silent,
) -> Compared:
    """Put finished checkpoints, folders, next to each other, and next to their dense source if `baseline` names it.

    Size, patterns and schemes come from the checkpoints; KL divergence, perplexity and output errors from what their
    conversions reported, or with `text` from a new measurement; the speed from the times of `gpu`. With `out` the
    comparison is also written as a page. Returns the Compared, whose `notes` tell what does not compare. InputError for
    options without effect, a single checkpoint, one that cannot be read, and a GPU without times for any of them.

        >>> found = slideconvert.compare([out], CompareOptions(baseline=str(model), gpu="h200"))
        >>> [side.entry.bits for side in found.sides][0] > found.sides[1].entry.bits
        True
    """
    folders = [Path(ckpt) for ckpt in ckpts]
    _check(folders, options)
    table = times_of(options)
    names = _names(folders)
    opened = {name: Checkpoint.open(folder) for name, folder in zip(names, folders, strict=True)}
    entries = [read_entry(opened[name], name, str(folder)) for name, folder in zip(names, folders, strict=True)]
    if options.baseline is not None:
        entries.insert(0, _open_baseline(options, opened, progress))
    measured = _measure(entries, opened, options, progress) if options.text else []
    found = side_by_side(entries, table, options.tokens or DEFAULT_TOKENS, measured)
    if options.out:
        with writing(options.out):
            write_file(options.out, render(found).encode())
    return found


def _check(folders: list[Path], options: CompareOptions) -> None:
    """InputError for options and checkpoints that do not go together, before anything is read."""
    for one in options.given():
        if one.name in ("sequences", "length", "activations", "device") and not options.text:
            raise InputError(f"{one.flag} belongs to --text", hint="add --text, or omit it")
    if options.tokens is not None and not (options.gpu or options.speed_table):
        raise InputError("--tokens belongs to --gpu", hint="name a GPU")
    if options.text and options.baseline is None:
        raise InputError("--text: divergence from which model?", hint="name the dense source with --baseline")
    if options.out:
        check_new_file(options.out)
    twice = [str(folder) for folder, count in Counter(folder.resolve() for folder in folders).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice", hint="name each checkpoint once")
    if len(folders) + (options.baseline is not None) < 2:
        raise InputError(
            f"{len(folders)} checkpoint: there is nothing to compare it with",
            hint="name another, or its dense source with --baseline",
        )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole path where two end alike."""
    count = Counter(folder.resolve().name for folder in folders)
    return [name if count[name := folder.resolve().name] == 1 else str(folder) for folder in folders]


def _open_baseline(options: CompareOptions, opened: dict[str, Checkpoint], progress: Progress) -> Entry:
    """The dense source; its weights are fetched only if it is to be run."""
    assert options.baseline is not None
    if options.text:
        snapshot, checkpoint = open_source(options.baseline, progress=progress)
    else:
        snapshot, checkpoint = open_for_planning(options.baseline)
    name = snapshot.id if snapshot.id not in opened else f"{options.baseline} (baseline)"
    opened[name] = checkpoint
    return read_entry(checkpoint, name, options.baseline, source=snapshot.id, baseline=True)


def _measure(
    entries: Sequence[Entry], opened: dict[str, Checkpoint], options: CompareOptions, progress: Progress
) -> list[Quality | None]:
    """Each checkpoint on the text, the baseline first."""
    assert options.text
    defaults = TextProtocol()
    protocol = TextProtocol(
        sequences=options.sequences or defaults.sequences,
        length=options.length or defaults.length,
        activations=options.activations or defaults.activations,
        device=choose_device(options.device),
    )
    found = measure({one.name: opened[one.name] for one in entries}, options.text, protocol, progress=progress)
    on = (
        f"{found.rows[0]['sequences']} sequences of {protocol.length} tokens of {Path(options.text).name}, "
        f"activations {protocol.activations}"
    )
    return [measured_quality(row, found.rows[0], on) for row in found.rows]
