"""Functions for finished checkpoints: verify, inspect, evaluate, push and download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.reader import Checkpoint
from ..checkpoint.snapshot import Snapshot
from ..errors import InputError
from ..evaluate.compare import TextProtocol, measure
from ..evaluate.served import Served
from ..evaluate.tasks import TaskResults, load_tasks, measure_tasks
from ..gguf_files.source import gguf_file
from ..hub.account import Target, find_target
from ..hub.publish import Pushed, carry_out, check_package, check_target, plan_push, read_folder
from ..hub.source import download as fetch
from ..hub.source import resolve
from ..hub.upload import Upload
from ..progress import Progress, silent
from ..report.inspect import Inspection, inspect_checkpoint
from ..rotate.check import verify_rotated
from ..rotate.record import is_rotated
from ..texts.named import text_of
from ..verify import Verdict, verify_checkpoint
from .options import EvaluateOptions, PushOptions, VerifyOptions
from .settings import choose_device

SERVED_TOP = 20
"""Default of --top with --served: the limit of a vLLM server that was started without --max-logprobs."""
OWNERS = {
    **dict.fromkeys(
        ("text_column", "sequences", "length", "by_position", "top", "keep_base", "base_gb", "served"), "text"
    ),
    **dict.fromkeys(("task_path", "limit", "shots"), "tasks"),
    **dict.fromkeys(("served_model", "api_key_env"), "served"),
}
"""Options of `eval` that have an effect only together with another."""


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate`.

    perplexity: one row per checkpoint, see `evaluate.compare.measure`: perplexity and ratio with their standard errors,
    KL divergence, top-1 agreement, expected acceptance; None without a text. protocol: how they were measured. tasks:
    the scores, None without tasks. notes: sentences on what could not be compared, and warnings of lm-eval.
    """

    perplexity: list[dict[str, Any]] | None
    tasks: TaskResults | None
    protocol: TextProtocol
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publication:
    """The result of `push`.

    target: the repository before the push. upload: the files that were, or would be, sent and deleted. pushed: the
    commit; None for a dry run.
    """

    target: Target
    upload: Upload
    pushed: Pushed | None


def download(
    hub_id: str, directory: str | Path | None = None, *, revision: str | None = None, progress: Progress = silent
) -> Snapshot:
    """Fetch a model from the Hub into `directory`, or into the Hugging Face cache, and check every file.

    revision: branch, tag or commit; None for main. After an interruption, the next call keeps the complete files.
    Returns the Snapshot: path, id and commit. HubError if the Hub cannot deliver the model; InputError if `directory`
    contains other files.
    """
    return fetch(hub_id, None if directory is None else Path(directory), revision=revision, progress=progress)


def verify(
    ckpt: str | Path,
    options: VerifyOptions = VerifyOptions(),
    *,
    progress: Progress = silent,
) -> Verdict:
    """Read a checkpoint back and check hashes, shapes, patterns, windows and weights.

    With `options.source`, every weight is compared with the source, that of a rotated model with the source's, rotated.
    Faults are no exceptions: they are in the Verdict,
    whose `faults` is empty if the checkpoint is sound. InputError if slideconvert did not write the checkpoint.

        >>> slideconvert.verify(out, VerifyOptions(source=str(model))).faults
        []
    """
    if options.revision is not None and options.source is None:
        raise InputError("--revision belongs to --source", hint="name the source, or omit it")
    original = None
    if options.source is not None:
        original = Checkpoint.open(resolve(options.source, revision=options.revision, progress=progress).path)
    device = choose_device(options.device)
    check = verify_rotated if is_rotated(Path(ckpt)) else verify_checkpoint
    return check(Checkpoint.open(Path(ckpt)), source=original, device=device, progress=progress)


def inspect(ckpt: str | Path, *, progress: Progress = silent) -> Inspection:
    """The pattern, zeros, error and bytes of every decoder linear of a checkpoint, of slideconvert or of another tool.

    InputError if it cannot be read.

    >>> {linear.pattern for linear in slideconvert.inspect(out).linears}
    {'2:8'}
    """
    path = resolve(str(ckpt), progress=progress).path if gguf_file(str(ckpt)) else Path(ckpt)
    return inspect_checkpoint(path, progress=progress)


def evaluate(
    ckpts: list[str] | str,
    options: EvaluateOptions,
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Measure checkpoints, folders or Hub ids, against the first one: by a text, by tasks of lm-eval, or by both.

    InputError for options that exclude each other, unknown tasks, a text that is too short, and what else `measure`
    names; SlideConvertError if a checkpoint gives losses or scores that are not finite, or a server fails.

        >>> rows = slideconvert.evaluate([model, out], EvaluateOptions(text=text, sequences=4)).perplexity
        >>> rows[1]["ratio"] > 1
        True
    """
    names = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    if not (options.text or names):
        raise InputError("nothing to measure the checkpoints by", hint="give --text, --tasks or both")
    for one in options.given():
        owner = OWNERS.get(one.name)
        if owner and not getattr(options, owner):
            raise InputError(f"{one.flag} belongs to --{owner}", hint=f"add --{owner}, or omit it")
    if options.task_path and not options.task_path.is_dir():
        raise InputError(f"--task-path {options.task_path}: no such folder", hint="give the folder of the YAML files")
    chosen = [str(ckpt) for ckpt in ([ckpts] if isinstance(ckpts, str | Path) else ckpts)]
    protocol, served = protocol_of(options, chosen), _served(options)
    opened = {ckpt: Checkpoint.open(resolve(ckpt, progress=progress).path) for ckpt in chosen}
    loaded = load_tasks(names, folder=options.task_path, shots=options.shots, progress=progress) if names else None
    text = None if options.text is None else text_of(options.text)
    found = measure(opened, text, protocol, served=served, progress=progress) if text else None
    scores = None
    if loaded:
        how = {"activations": protocol.activations, "device": protocol.device}
        scores = measure_tasks(opened, loaded, limit=options.limit, **how, progress=progress)
    notes = (*(found.notes if found else ()), *(scores.notes if scores else ()))
    return Evaluation(found.rows if found else None, scores, protocol, notes)


def protocol_of(options: EvaluateOptions, ckpts: Sequence[str]) -> TextProtocol:
    """How checkpoints are measured on a text. InputError for options without effect and numbers out of range."""
    alone = len(set(ckpts)) < 2 and not options.served and options.keep_base is None
    for one in options.given():
        if alone and one.name in ("top", "base_gb"):
            raise InputError(
                f"{one.flag}: there is nothing to compare {ckpts[0]} with", hint="name another checkpoint, or omit it"
            )
    if options.base_gb is not None and not 0 < options.base_gb < float("inf"):
        raise InputError(f"--base-gb {options.base_gb}", hint="a positive number of GB")
    defaults = TextProtocol()
    return TextProtocol(
        sequences=options.sequences or defaults.sequences,
        column=options.text_column,
        length=options.length or defaults.length,
        activations=options.activations or defaults.activations,
        device=choose_device(options.device),
        positions=options.by_position,
        top=options.top or (SERVED_TOP if options.served else defaults.top),
        limit=defaults.limit if options.base_gb is None else int(options.base_gb * 1e9),
        base_file=options.keep_base,
    )


def _served(options: EvaluateOptions) -> Served | None:
    """The server to measure, with the key from the environment. InputError if there is none."""
    if options.served is None:
        return None
    key = None if options.api_key_env is None else os.environ.get(options.api_key_env)
    if options.api_key_env is not None and not key:
        raise InputError(
            "--api-key-env names an environment variable that is not set, or is empty",
            hint="name the variable that holds the key, not the key",
        )
    return Served(options.served, options.served_model, key)


def push(
    ckpt: str | Path,
    repo: str,
    options: PushOptions = PushOptions(),
    *,
    progress: Progress = silent,
) -> Publication:
    """Publish a finished and verified checkpoint as a Hub repository, in one commit; with dry_run, only compare.

    repo: USER/NAME. InputError if the folder must not be published; HubError if the Hub refuses the push.
    """
    if options.message is not None and not options.message.strip():
        raise InputError("--message is empty", hint="omit it, or write a message")
    if options.device is not None and not options.verify:
        raise InputError("--device belongs to --verify", hint="omit it: nothing else is computed")
    package = check_package(options.package) if options.package is not None else None
    target = find_target(repo, options.revision)
    check_target(target)  # before every byte of the folder is read
    device = choose_device(options.device) if options.verify else "cpu"
    folder = read_folder(Path(ckpt), verify=options.verify, device=device, progress=progress)
    folder = replace(folder, package=package)
    upload = plan_push(folder, target)
    if options.dry_run:
        return Publication(target, upload, None)
    pushed = carry_out(folder, upload, public=options.public, message=options.message, progress=progress)
    return Publication(target, pushed.upload, pushed)
