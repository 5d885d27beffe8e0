"""The figures of a comparison as text, the same in tables and on the page."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UNKNOWN
from ..report.summary import kl, kl_error, share, with_error
from .quality import Quality


def counted(found: Mapping[str, int]) -> str:
    """'2:8', or '2:6 (4) + 2:8 (24)' of several; UNKNOWN of none."""
    if not found:
        return UNKNOWN
    if len(found) == 1:
        return next(iter(found))
    return " + ".join(f"{name} ({count})" for name, count in sorted(found.items(), key=lambda one: (len(one[0]), one)))


def perplexity_text(quality: Quality | None) -> str:
    """With the ratio to the source's: '9.276 (× 1.034)'."""
    if quality is None or quality.perplexity is None:
        return UNKNOWN
    return f"{quality.perplexity:.3f}" + (f" (× {quality.ratio:.3f})" if quality.ratio else "")


def kl_text(quality: Quality | None) -> str:
    """With its standard error."""
    return UNKNOWN if quality is None else with_error(kl(quality.kl), kl_error(quality.kl_stderr))


def same_top_text(quality: Quality | None) -> str:
    """With its standard error."""
    return UNKNOWN if quality is None else with_error(share(quality.same_top), share(quality.same_top_stderr))


def speed_text(speedup: float | None) -> str:
    """'1.31×'."""
    return UNKNOWN if speedup is None else f"{speedup:.2f}×"
