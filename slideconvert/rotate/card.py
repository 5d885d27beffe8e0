"""The model card (README.md) of a rotated folder."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..core.choices import ALL
from ..errors import one_line
from ..report.source_card import source_card
from .record import RotationRecord


def card(record: RotationRecord, source: Path, *, untied: bool) -> bytes:
    """The card, with what the card in the folder `source` says that a derived model must repeat."""
    import yaml

    fields = source_card(source)
    front = yaml.safe_dump(fields, allow_unicode=True) if fields else ""
    what = "residual stream and values of heads" if record.parts == ALL else "values of heads"
    head = " Its head was tied to the embedding, and is a matrix of its own now.\n" if untied else ""
    mean = [sum(losses) / len(losses) for losses in (record.before, record.after)]
    name = one_line(str(record.source["id"])).replace("`", "'")
    return (
        f"---\n{front}---\n# `{name}`, rotated for {record.pattern}\n\n"
        f"The channels of this model ({what}) are rotated, so that pruning to {record.pattern} loses less. It computes "
        f"the same function as `{name}`, up to the rounding of its weights.\n{head}\n"
        f"Estimated loss of pruning a linear, relative to its output: {mean[0]:.4f} before, {mean[1]:.4f} after.\n\n"
        f"```bash\nslideconvert convert PATH OUT --pattern {record.pattern.replace(':', '_')}\n"
        f"slideconvert verify PATH --source SOURCE\n```\n\nMade by slideconvert {__version__}.\n"
    ).encode()
