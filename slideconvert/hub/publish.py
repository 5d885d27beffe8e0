"""From a finished checkpoint folder to a Hub repository: what may go, what goes, and what goes away there.

    read_folder    ours, finished, verified; every file as the record in config.json has it, the reports as they belong
    plan_push      compare with the repository; the card now names it. Reads only: this is `push --dry-run`
    carry_out      make the repository if need be, send, one commit, compare what lies there

Nothing is ever written into the folder. What the record does not know is not sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .. import __version__
from ..checkpoint.files import CHANNEL_ORDERS, CONFIG, INDEX, REPORT_JSON, SINGLE
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError, VerificationError
from ..formats.record import Record, read_record
from ..progress import Progress, silent
from ..report import Report
from ..report.render import render_reports
from ..report.summary import patterns, schemes
from ..runtime.slidesparse_record import CODE_FILES, KERNELS, SOURCES, bundle_faults
from ..verify import config_faults, verify_checkpoint
from .account import MAIN, Target
from .upload import LocalFile, Upload, create, plan_upload, send

REINSTALL_HINT = "convert again, or get the folder again"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Folder:
    """A checkpoint of ours that may be published. files: all but the reports, in the order they are sent.

    report_json: the report as it is published, byte for byte that of the folder unless it was verified only now.
    """

    path: Path
    record: Record
    report: Report
    files: tuple[LocalFile, ...]
    report_json: bytes


@dataclass(frozen=True)
class Pushed:
    """What a push did. upload: what was there and what was new; commit: where it lies now, 40 hex."""

    upload: Upload
    commit: str


def read_folder(path: Path, *, verify: bool = False, device: str = "cpu", progress: Progress = silent) -> Folder:
    """Check that the folder at `path` may be published, reading every byte of it once.

    verify: re-read it weight by weight as well, as `verify` does, and let the card say so; that lets conversions in
    that were made with --no-verify. progress("check", bytes, all bytes). InputError if it is not ours, unfinished,
    not verified or no longer what was converted; VerificationError for a faulty weight.
    """
    checkpoint = Checkpoint.open(path)
    record = read_record(checkpoint.config, str(path / CONFIG))
    if record is None:
        raise InputError(
            f"{path} was not written by slideconvert", hint="only its checkpoints are pushed: convert first"
        )
    if not record.files:
        raise InputError(
            f"{path / CONFIG} records no sha256 of the files, as where transformers has saved a model again",
            hint="slideconvert relayout writes a complete checkpoint, which can be pushed",
        )
    if outside := [name for name in record.files if PurePosixPath(name).name != name or "\\" in name]:
        raise InputError(
            f"{path / CONFIG}: its record names a file outside the folder: {outside[0]}",
            hint="do not trust this folder",
        )
    report, report_json = _read_report(path, record)
    if not (report.verified or verify):
        raise InputError(
            f"{path} was never verified (--no-verify)",
            hint="add --verify to check it now, or convert without --no-verify",
        )
    _check_reports(path, report)
    files = _check_files(checkpoint, record, progress)
    if verify:
        verdict = verify_checkpoint(checkpoint, device=device, progress=progress)
        if verdict.faults:
            raise VerificationError(
                f"{path}: {verdict.faults[0]} ({len(verdict.faults)} faults)",
                hint=f"nothing was published: {REINSTALL_HINT}",
            )
        report = replace(report, verified=verdict.tensors)
        report_json = report.to_json().encode()
    return Folder(path, record, report, files, report_json)


def check_target(target: Target) -> None:
    """InputError if a checkpoint lies there that slideconvert has not made: a push would take its place.

    Ours are known by their report. A branch that is new, or still the same as main, may change all that it starts with.
    """
    there = {file.name for file in target.files}
    checkpoint = CONFIG in there or any(name.endswith(".safetensors") for name in there)
    if checkpoint and target.own and REPORT_JSON not in there:
        raise InputError(
            f"{target.id} holds another checkpoint on {target.branch}, not one of slideconvert's",
            hint="name another repository, or a new branch with --revision",
        )


def plan_push(folder: Folder, target: Target) -> Upload:
    """What pushing `folder` to `target` sends and deletes. InputError as of `check_target`."""
    check_target(target)
    return _compare(folder, target)


def _compare(folder: Folder, target: Target) -> Upload:
    """What is to be sent to `target` and deleted there, whoever made what is there."""
    branch = None if target.branch == MAIN else target.branch
    texts = render_reports(folder.report, repo=target.id, branch=branch) | {REPORT_JSON: folder.report_json}
    reports = [LocalFile.of_bytes(name, text) for name, text in texts.items()]
    rest = [file for file in folder.files if file.name not in (INDEX, CONFIG)]
    last = [file for name in (INDEX, CONFIG) for file in folder.files if file.name == name]
    files = [*rest, *reports, *last]
    names = {file.name for file in files}
    there = {file.name for file in target.files}
    return plan_upload(target, files, [name for name in there - names if is_checkpoints(name)])


def carry_out(folder: Folder, upload: Upload, *, public: bool, message: str | None, progress: Progress) -> Pushed:
    """Do what the upload says, the repository and the branch made first if they are not there."""
    if upload.target.commit is None:
        target = create(upload.target, public=public)
        upload = _compare(folder, target)
    return Pushed(upload, send(upload, message or describe(folder), progress))


def describe(folder: Folder) -> str:
    """The message of the commit, in a line."""
    what = " ".join([" + ".join(patterns(folder.report)), " + ".join(schemes(folder.report)).upper()]).strip()
    return f"{what or 'Checkpoint'} of {folder.report.source} by slideconvert {__version__}"


def is_checkpoints(name: str) -> bool:
    """Whether a file of this name in a repository is part of a checkpoint as we write them: weights, index, code."""
    if name in (SINGLE, INDEX, CHANNEL_ORDERS, *CODE_FILES) or _SHARD.fullmatch(name):
        return True
    return name.startswith(f"{KERNELS}/") and name.endswith((*SOURCES, ".md"))


def _read_report(path: Path, record: Record) -> tuple[Report, bytes]:
    """The report of the folder and its bytes. InputError if it is missing, unreadable or of another conversion."""
    try:
        text = (path / REPORT_JSON).read_bytes()
        report = Report.from_json(text.decode())
    except FileNotFoundError:
        raise InputError(
            f"{path / REPORT_JSON} is missing: what was done and verified is not known", hint=REINSTALL_HINT
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path / REPORT_JSON}: not a report ({error!r})", hint=REINSTALL_HINT) from error
    told = {layer.name: (layer.scheme, layer.pattern) for layer in report.layers if not layer.kept}
    known = {name: (linear.scheme.name, str(linear.pattern)) for name, linear in record.linears.items()}
    origin = {"id": report.source, "revision": report.revision}
    if report.files != record.files:
        wrong = sorted(
            name for name in {*report.files, *record.files} if report.files.get(name) != record.files.get(name)
        )
        raise InputError(
            f"{path / REPORT_JSON} belongs to another conversion: its sha256 of {wrong[0]} is not that of {CONFIG}",
            hint=REINSTALL_HINT,
        )
    if (told, report.layout, report.recipe, origin) != (known, record.layout, record.recipe, record.source):
        raise InputError(
            f"{path / REPORT_JSON} belongs to another conversion: it contradicts the record in {CONFIG}",
            hint=REINSTALL_HINT,
        )
    return report, text


def _check_reports(path: Path, report: Report) -> None:
    """InputError if card or page are not those of the report: they would be published with its name."""
    for name, text in render_reports(report).items():
        if name != REPORT_JSON and (path / name).is_file() and (path / name).read_bytes() != text:
            raise InputError(
                f"{path / name} is not the one that belongs to {REPORT_JSON}: it was changed, or is of another version",
                hint="move it away: push makes a new one; the card can be edited on the Hub afterwards",
            )


def _check_files(checkpoint: Checkpoint, record: Record, progress: Progress) -> tuple[LocalFile, ...]:
    """Every file of the record, read once and compared with its SHA-256; weights first. InputError if one differs."""
    path = checkpoint.path
    hashes = {**record.files, **record.kernels}
    faults = [f"{name}: file is missing" for name in record.files if not (path / name).is_file()]
    faults += [
        f"{file.name}: a weight file that the record does not know"
        for file in sorted(path.glob("*.safetensors"))
        if file.name not in record.files
    ]
    faults += [*bundle_faults(path, record.kernels), *config_faults(checkpoint, record)]
    _refuse(path, faults)
    names = sorted(hashes, key=lambda name: (not name.endswith(".safetensors"), name))
    total, done, files = sum((path / name).stat().st_size for name in names), 0, list[LocalFile]()
    for name in names:

        def tell(read: int, before: int = done) -> None:
            progress("check", before + read, total)

        files.append(LocalFile.of_path(name, path / name, tell))
        done += files[-1].size
    _refuse(
        path,
        [
            f"{file.name}: sha256 is not {hashes[file.name][:12]}… of the record: changed after conversion"
            for file in files
            if file.sha256 != hashes[file.name]
        ],
    )
    config = LocalFile.of_path(CONFIG, path / CONFIG)
    if read_json(path / CONFIG) != checkpoint.config:
        raise InputError(
            f"{path / CONFIG} changed while the folder was read", hint="let nobody write there; push again"
        )
    return (*files, config)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise InputError(
            f"{path}: {faults[0]} ({len(faults)} faults)", hint=f"`slideconvert verify` tells all; {REINSTALL_HINT}"
        )
