"""Publish a finished checkpoint folder as a Hub repository.

    read_folder    refuse a folder that is not ours, finished and verified; hash every file and compare with the record
    plan_push      compare with the repository and render the card with its name. Read-only: this is `push --dry-run`
    carry_out      create the repository if necessary, upload, commit once, compare the commit with the files

Nothing here writes into the folder, and only files of the record are uploaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.files import CARD, CHANNEL_ORDERS, CHANNEL_SCALES, CONFIG, INDEX, REPORT_JSON, SINGLE
from ..checkpoint.reader import Checkpoint, read_json
from ..checkpoint.staging import file_sha256
from ..errors import InputError, VerificationError, printable
from ..formats.record import Record, config_text, read_record, with_reports
from ..progress import Progress, silent
from ..report import Report
from ..report.render import render_reports
from ..report.summary import patterns, schemes
from ..runtime.slidesparse_record import CODE_FILES, KERNELS, SOURCES, bundle_faults
from ..verify import verify_checkpoint
from ..verify.config import config_faults
from ..verify.files import unlisted_faults
from .account import MAIN, Target
from .upload import LocalFile, Upload, create, plan_upload, send

RESTORE_HINT = "convert the model again, or copy the folder again"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Folder:
    """A checkpoint of ours that may be published. files: all but the reports, in upload order.

    config: of the folder. report_json: the report to publish: the bytes of the folder, unless this push verified it.
    package: what the published card installs slideconvert from; None for a placeholder.
    """

    path: Path
    config: dict[str, Any]
    record: Record
    report: Report
    files: tuple[LocalFile, ...]
    report_json: bytes
    package: str | None = None


@dataclass(frozen=True)
class Pushed:
    """The result of a push. upload: files that were sent or present; commit: 40 hex digits."""

    upload: Upload
    commit: str


def read_folder(path: Path, *, verify: bool = False, device: str = "cpu", progress: Progress = silent) -> Folder:
    """Check that the folder at `path` may be published, reading every byte of it once.

    verify: also check every weight, as `verify` does, and record it in the card; this accepts conversions with
    --no-verify. progress("check", bytes, all bytes). InputError if the folder is not ours, unfinished, not verified or
    changed since the conversion; VerificationError for a faulty weight.
    """
    checkpoint = Checkpoint.open(path)
    record = read_record(checkpoint.config, str(path / CONFIG))
    if record is None:
        raise InputError(
            f"{path} was not written by slideconvert",
            hint="convert the model first: push accepts only checkpoints of slideconvert",
        )
    if record.saved_again:
        raise InputError(
            f"{path / CONFIG} records no sha256 of the files, because {record.saved_again} has saved the model again",
            hint="slideconvert relayout writes a complete checkpoint, which can be pushed",
        )
    report, report_json = _read_report(path, record)
    if not (report.verified or verify):
        raise InputError(
            f"{path} was never verified (--no-verify)",
            hint="add --verify to check it now, or convert without --no-verify",
        )
    _check_reports(path, record, report)
    files = _check_files(checkpoint, record, progress)
    if verify:
        verdict = verify_checkpoint(checkpoint, device=device, progress=progress)
        if verdict.faults:
            raise VerificationError(
                f"{path}: {verdict.faults[0]} ({len(verdict.faults)} faults)",
                hint=f"nothing was published: {RESTORE_HINT}",
            )
        report = replace(report, verified=verdict.tensors)
        report_json = report.to_json().encode()
    return Folder(path, checkpoint.config, record, report, files, report_json)


def check_target(target: Target) -> None:
    """InputError if the target holds a checkpoint that slideconvert did not write, which a push would replace.

    Ours have a report. A branch that is new or equal to main may be changed freely.
    """
    there = {file.name for file in target.files}
    checkpoint = CONFIG in there or any(name.endswith(".safetensors") for name in there)
    if checkpoint and target.own and REPORT_JSON not in there:
        raise InputError(
            f"{target.id} already holds a checkpoint on {target.branch} that slideconvert did not write",
            hint="name another repository, or a new branch with --revision",
        )


def check_package(package: str) -> str:
    """`package` if everybody can install it and nobody else can claim it: the https:// address of a wheel, or
    git+https:// and that of a repository. InputError for anything else, such as a name on a package index."""
    if "@" in package.partition("://")[2].partition("/")[0] or re.search(r"[\s`<>\"']", package):
        raise InputError(
            "--package has a user name, a space or a quote in it, and everybody reads the card",
            hint="give an address that everybody can open",
        )
    if not re.fullmatch(r"https://[\w.:-]+/\S+\.whl|git\+https://[\w.:-]+/\S+", package, re.ASCII):
        raise InputError(
            f"--package is '{printable(package)}', which is no address of a wheel or repository of slideconvert",
            hint="give https://….whl or git+https://…; without --package the card leaves it open",
        )
    return package


def plan_push(folder: Folder, target: Target) -> Upload:
    """The files that pushing `folder` to `target` sends and deletes. Raises what `check_target` does."""
    check_target(target)
    return _compare(folder, target)


def _compare(folder: Folder, target: Target) -> Upload:
    """The files to send to `target` and to delete there, without `check_target`."""
    branch = None if target.branch == MAIN else target.branch
    texts = render_reports(folder.report, repo=target.id, branch=branch, package=folder.package) | {
        REPORT_JSON: folder.report_json
    }
    reports = [LocalFile.of_bytes(name, text) for name, text in texts.items()]
    hashes = {file.name: file.sha256 for file in reports if file.name != CARD}
    rest = [file for file in folder.files if file.name not in (INDEX, CONFIG)]
    last = [file for name in (INDEX, CONFIG) for file in folder.files if file.name == name]
    if hashes != folder.record.reports:  # this push verified the folder, or writes a report that was deleted
        last[-1] = LocalFile.of_bytes(CONFIG, config_text(with_reports(folder.config, hashes)))
    files = [*rest, *reports, *last]
    names = {file.name for file in files}
    there = {file.name for file in target.files}
    return plan_upload(target, files, [name for name in there - names if is_checkpoints(name)])


def carry_out(folder: Folder, upload: Upload, *, public: bool, message: str | None, progress: Progress) -> Pushed:
    """Carry out the upload; create the repository and the branch first if they do not exist."""
    if upload.target.commit is None:
        target = create(upload.target, public=public)
        upload = _compare(folder, target)
    return Pushed(upload, send(upload, message or describe(folder), progress))


def describe(folder: Folder) -> str:
    """The default commit message."""
    what = " ".join([" + ".join(patterns(folder.report)), " + ".join(schemes(folder.report)).upper()]).strip()
    return f"{what or 'Checkpoint'} of {folder.report.source} by slideconvert {__version__}"


def is_checkpoints(name: str) -> bool:
    """Whether a file of this name belongs to a checkpoint of ours: weights, index, code."""
    if name in (SINGLE, INDEX, CHANNEL_ORDERS, CHANNEL_SCALES, *CODE_FILES) or _SHARD.fullmatch(name):
        return True
    return name.startswith(f"{KERNELS}/") and name.endswith((*SOURCES, ".md"))


def _read_report(path: Path, record: Record) -> tuple[Report, bytes]:
    """The report of the folder and its bytes. InputError if it is missing, unreadable or of another conversion."""
    try:
        text = (path / REPORT_JSON).read_bytes()
        report = Report.from_json(text.decode())
    except FileNotFoundError:
        raise InputError(
            f"{path / REPORT_JSON} is missing, so the conversion and its verification are unknown", hint=RESTORE_HINT
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path / REPORT_JSON}: not a report ({error!r})", hint=RESTORE_HINT) from error
    reported = {layer.name: (layer.scheme, layer.pattern) for layer in report.layers if not layer.kept}
    known = {name: (linear.scheme.name, str(linear.pattern)) for name, linear in record.linears.items()}
    origin = {"id": report.source, "revision": report.revision}
    if report.files != record.files:
        wrong = sorted(
            name for name in {*report.files, *record.files} if report.files.get(name) != record.files.get(name)
        )
        raise InputError(
            f"{path / REPORT_JSON} belongs to another conversion: its sha256 of {wrong[0]} is not that of {CONFIG}",
            hint=RESTORE_HINT,
        )
    if (reported, report.layout, report.recipe, origin) != (known, record.layout, record.recipe, record.source):
        raise InputError(
            f"{path / REPORT_JSON} belongs to another conversion: it contradicts the record in {CONFIG}",
            hint=RESTORE_HINT,
        )
    return report, text


def _check_reports(path: Path, record: Record, report: Report) -> None:
    """InputError if card or page do not match the report, or the report is not the one that was written."""
    for name, text in render_reports(report).items():
        if name != REPORT_JSON and (path / name).is_file() and (path / name).read_bytes() != text:
            raise InputError(
                f"{path / name} does not match {REPORT_JSON}: edited, or written by another version of slideconvert",
                hint="delete it: push writes a new one, and you can edit the card on the Hub afterwards",
            )
    for name, digest in record.reports.items():
        if (path / name).is_file() and file_sha256(path / name) != digest:
            raise InputError(f"{path / name}: sha256 is not {digest[:12]}… of the record", hint=RESTORE_HINT)


def _check_files(checkpoint: Checkpoint, record: Record, progress: Progress) -> tuple[LocalFile, ...]:
    """Read every file of the record once and compare its SHA-256; weights first. InputError if one differs."""
    path = checkpoint.path
    hashes = {**record.files, **record.kernels}
    faults = [f"{name}: file is missing" for name in record.files if not (path / name).is_file()]
    faults += [*unlisted_faults(checkpoint, record), *bundle_faults(path, record.kernels)]
    faults += config_faults(checkpoint, record)
    _refuse(path, faults)
    names = sorted(hashes, key=lambda name: (not name.endswith(".safetensors"), name))
    total, done, files = sum((path / name).stat().st_size for name in names), 0, list[LocalFile]()
    for name in names:

        def advance(read: int, before: int = done) -> None:
            progress("check", before + read, total)

        files.append(LocalFile.of_path(name, path / name, advance))
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
        raise InputError(f"{path / CONFIG} changed while the folder was read", hint="stop other writers and push again")
    return (*files, config)


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        raise InputError(
            f"{path}: {faults[0]} ({len(faults)} faults)", hint=f"`slideconvert verify` lists all; {RESTORE_HINT}"
        )
