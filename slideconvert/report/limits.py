"""What a user allows of the distance between an output and its source: a conversion beyond it is not published."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SlideConvertError
from .quality import divergences, measured_linears
from .record import Report


class QualityError(SlideConvertError):
    """An output is further from its source than the user allows."""


@dataclass(frozen=True)
class Limits:
    """What --max-kl and --max-output-error allow; None for no limit."""

    kl: float | None = None
    output_error: float | None = None

    def check(self, report: Report) -> None:
        """QualityError if a measured figure exceeds its limit, or is not a number."""
        found = [(f"KL divergence on {where}", value, self.kl, "--max-kl") for where, value in divergences(report)]
        found += [
            (f"the output error of {layer.name}", layer.output_error or 0.0, self.output_error, "--max-output-error")
            for layer in measured_linears(report)
        ]
        over = [one for one in found if one[2] is not None and not one[1] <= one[2]]
        if over:
            what, value, limit, flag = max(over, key=lambda one: one[1])
            more = f" ({len(over)} figures exceed their limits)" if len(over) > 1 else ""
            raise QualityError(
                f"{what} is {value:.4g}, {flag} allows {limit:g}{more}",
                hint="nothing was published: run it again with --resume and a higher limit to publish this result, or "
                "convert with more calibration text, a milder pattern or --preset quality",
            )
