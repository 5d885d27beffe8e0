"""What an earlier conversion left in an output folder: a finished output, or one that may be overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..checkpoint.files import CONFIG, REPORT_JSON, STAGING
from ..checkpoint.reader import read_json
from ..checkpoint.staging import check_free, writing
from ..errors import InputError
from ..formats.record import Record, read_record
from ..plan.calibration import without_folders
from ..plan.plan import Plan
from ..report import Report


def finished(out: Path) -> Record | None:
    """The record of the finished output in a folder, None if there is none. InputError for a damaged record."""
    if not (out / CONFIG).is_file() or (out / STAGING).exists():
        return None
    return read_record(read_json(out / CONFIG), str(out))


def check_vacant(out: Path, *, resume: bool) -> None:
    """`check_free`, which also tells the way out if `out` is a finished output. InputError as there."""
    if (out / CONFIG).is_file() and finished(out):
        raise InputError(
            f"{out} is not an empty folder: a finished output is there",
            hint="name a new folder, or replace the output with --overwrite",
        )
    check_free(out, resume=resume)


def report_of(out: Path, record: Record, plan: Plan) -> Report:
    """The report of the finished output in `out`. InputError if another conversion than `plan` wrote it, or without a
    readable report. Files of calibration text are compared by name."""
    settings = {
        "source": (record.source, plan.record.source),
        "recipe": (without_folders(record.recipe), plan.record.recipe),  # earlier versions recorded whole paths
        "layout": (record.layout, plan.layout),
    }
    changed = [f"{name} was {was}, is {now}" for name, (was, now) in settings.items() if was != now]
    if changed:
        raise InputError(
            f"{out} is the finished output of other settings: {'; '.join(changed)[:600]}",
            hint="name a new folder, or replace it with --overwrite",
        )
    try:
        return Report.from_json((out / REPORT_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{out / REPORT_JSON}: not a readable report ({error})", hint="convert again with --overwrite"
        ) from error


def check_replaceable(out: Path) -> None:
    """InputError if the folder `out` holds anything but what a conversion wrote or began."""
    if any(out.iterdir()) and not (out / STAGING).is_dir() and finished(out) is None:
        raise InputError(
            f"--overwrite: {out} holds no output of slideconvert",
            hint="name another folder, or empty this one yourself",
        )


def clear(out: Path) -> None:
    """Delete everything in the folder `out`, which `check_replaceable` has passed."""
    with writing(out):
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
