"""The function for rotations, which precede a conversion."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.claim import claimed
from ..checkpoint.disk import BESIDE, free_bytes
from ..checkpoint.staging import check_free
from ..core.choices import ALL, ROTATED
from ..core.patterns import BlockPattern
from ..errors import DiskFullError, InputError, pick
from ..progress import Progress, silent
from ..rotate.run import Job, Rotated
from ..rotate.run import rotate as carry_out
from .ends import check_other_name, opened
from .options import RotateOptions
from .recipe import calibration_of
from .settings import settings_of

STEPS = 200
"""Default steps of the search: the loss falls little in any more."""
PATTERN = "2:4"
"""The default pattern: the one that loses most, and gains most from a rotation."""


def rotate(
    source: str | Path,
    out: str | Path,
    options: RotateOptions = RotateOptions(),
    *,
    progress: Progress = silent,
) -> Rotated:
    """Rotate the channels of a model, a folder, a Hub id or a GGUF file, and write it to the folder `out`.

    The rotated model computes the same function up to the rounding of its weights, and is converted like any other.
    After an interruption, resume=True continues to the same bytes. Returns the note of the output, with the estimated
    loss before and after. InputError for options or a source that cannot be used, HubError for a Hub id that cannot be
    fetched, VerificationError if the output is not the source, rotated.
    """
    out = Path(out)
    check_other_name(source, out)
    parts = pick(options.parts or ALL, ROTATED, "part to rotate")
    pattern = BlockPattern.parse(options.pattern or PATTERN)
    if options.low_disk and options.keep_on == "disk":
        raise InputError(
            "--low-disk with --keep-on disk: every step would fetch the model again", hint="omit one of them"
        )
    calibration = calibration_of(options)
    settings = settings_of(options)
    with claimed(out) as claim:
        check_free(out, resume=options.resume)  # before gigabytes are fetched
        with opened(str(source), out, options, progress) as (snapshot, checkpoint):
            needed, free = checkpoint.bytes + BESIDE, free_bytes(out)
            if free < needed:
                raise DiskFullError(
                    f"{out}: the output needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
                    hint="free disk space or choose another disk",
                )
            job = Job(snapshot, checkpoint, pattern, parts, options.steps or STEPS, calibration)
            return carry_out(
                job, claim, settings=settings, resume=options.resume, verify=options.verify, progress=progress
            )
