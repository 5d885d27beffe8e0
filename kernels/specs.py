"""The kinds of quantized linears, and any of them from its text form."""

from __future__ import annotations

from functools import cache

from .group_spec import GroupSpec
from .slide_spec import SlideSpec
from .spec import LinearSpec

KINDS: dict[str, type[LinearSpec]] = {spec.kind: spec for spec in (SlideSpec, GroupSpec)}


@cache
def parse_spec(text: str) -> LinearSpec:
    """The spec whose `text` this is. ValueError if there is no such linear."""
    kind, *words = text.split()
    return KINDS[kind].from_words(words)
