"""The errors that slideconvert raises on purpose: what went wrong, where, the numbers, and the way out.

Every one of them is a sentence for a person. The command line prints it as one line and exits with
`exit_code`; anything else that escapes is a defect, with an exit code of its own and its traceback behind -v.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

UNKNOWN = "–"
"""What stands for a number that is not known."""
TRY_AGAIN = 75
"""The exit code of what the same command may do later (EX_TEMPFAIL of sysexits.h)."""


class SlideConvertError(Exception):
    """Base of every deliberate error.

    what: what is wrong and where, with the numbers.
    hint: what the user can do about it; may be empty.
    elsewhere: whether it happened on another rank of the job, which tells of it.
    told: whether the result for machines tells of it already.
    """

    exit_code = 1
    elsewhere = False
    told = False

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what

    def to_json(self) -> dict[str, str | int]:
        """For machines: its kind, its words, and the exit code of a command that it ends."""
        kind = type(self).__name__
        return {"kind": kind, "what": self.what, "hint": self.hint, "exit_code": self.exit_code}


class InputError(SlideConvertError):
    """The request or the input cannot be used as it is: wrong option, broken checkpoint."""

    exit_code = 2


class OutputError(InputError):
    """The work cannot go on here: no permission, disk space or memory. --resume continues from the finished work."""


class PatternError(InputError):
    """A tensor does not follow its 2:L pattern, or the pattern itself is not one we know."""


class NotMeasuredError(InputError):
    """No table has the times that were asked for."""


class HubError(InputError):
    """The Hub refused or could not deliver: missing, gated, cut off, or not the bytes it promised."""


class DiskFullError(OutputError):
    """There is too little disk space now."""

    exit_code = TRY_AGAIN


class UnavailableError(HubError):
    """The Hub cannot be reached, fails, is too busy or breaks off, or the disk fills up while it delivers."""

    exit_code = TRY_AGAIN


class VerificationError(SlideConvertError):
    """A written checkpoint is not what it says it is."""


class CalibrationWarning(UserWarning):
    """A calibration text from which a conversion can learn little; told before the work."""


def pick(word: str, choices: Iterable[str], kind: str) -> str:
    """`word` if it is one of the choices; else InputError that suggests the nearest one."""
    known = list(choices)
    if word in known:
        return word
    meant = did_you_mean(word.lower(), known, cutoff=0.5)
    raise InputError(f"unknown {kind} '{word}'", hint=f"{meant}use one of {', '.join(known)}")


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6, folder: Path | None = None) -> str:
    """The beginning of a hint that asks for the nearest of the known words; "" if none is like it. cutoff: the least
    likeness (difflib). folder: where the words are names of files."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    if not near:
        return ""
    return f"did you mean {folder / near[0] if folder else near[0]}? "


def printable(text: str) -> str:
    """Text from a checkpoint, safe to show. U+FFFD replaces control characters, lone surrogates, and overrides of the
    text direction, which can make one name look like another; line feeds are kept."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def one_line(text: str) -> str:
    """`printable` text on one line."""
    return " ".join(printable(text).split())
