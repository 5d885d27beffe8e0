"""What an option is: a dataclass field with its help text and its spelling on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from inspect import get_annotations
from typing import Any, ClassVar, get_type_hints

SPEC = "option"


@dataclass(frozen=True)
class Spec:
    """How an option appears on the command line.

    help: what it does, with its default in brackets. flag: its spelling, the field's name with dashes unless given.
    metavar: what stands for the value. choices: the values to choose from, which then stand for it. others: whether
    other values may be given too, which the job then checks. minimum: of a whole number. several: whether it may be
    given more than once, for a sequence of values.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    others: bool = False
    minimum: int | None = None
    several: bool = False


@dataclass(frozen=True)
class Option:
    """One option of a job: its field, type and default, the heading it stands under, and its Spec."""

    name: str
    type: type
    default: Any
    heading: str
    spec: Spec

    @property
    def flag(self) -> str:
        """--name as it is written."""
        return self.spec.flag or f"--{self.name.replace('_', '-')}"


def option(
    help: str,
    *,
    default: Any = None,
    flag: str = "",
    metavar: str = "",
    choices: Iterable[str] = (),
    others: bool = False,
    minimum: int | None = None,
    several: bool = False,
) -> Any:
    """A dataclass field with the Spec of its option."""
    return field(default=default, metadata={SPEC: Spec(help, flag, metavar, tuple(choices), others, minimum, several)})


class Options:
    """Base of all option classes."""

    HEADING: ClassVar[str] = ""

    @classmethod
    def options(cls) -> list[Option]:
        """The options of a job, those of the first base first."""
        known: dict[str, Field[Any]] = {one.name: one for one in fields(cls)}  # type: ignore[arg-type]
        hints, owners = get_type_hints(cls), _owners(cls)
        return [_option(known[name], hints[name], owner.HEADING) for name, owner in owners.items() if name in known]

    def given(self) -> list[Option]:
        """The options that have another value than their default."""
        return [one for one in self.options() if getattr(self, one.name) != one.default]


def _owners(cls: type[Options]) -> dict[str, type[Options]]:
    """The names that a class and its bases annotate, the first base's first, each with the class that introduces it."""
    owners: dict[str, type[Options]] = {}
    for base in cls.__bases__:
        if issubclass(base, Options):
            owners = {**owners, **_owners(base), **owners}
    return {**owners, **{name: cls for name in get_annotations(cls) if name not in owners}}


def _option(one: Field[Any], hint: Any, heading: str) -> Option:
    value = next((part for part in getattr(hint, "__args__", (hint,)) if part is not type(None)), hint)
    return Option(one.name, value, one.default, heading, one.metadata[SPEC])
