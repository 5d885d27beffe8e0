"""JSON from other people's files: whatever is read can be written again, as JSON in UTF-8."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    ValueError for anything else, and for what would fail when it is written at the end of the work or read by others:
    NaN, infinity, numbers beyond float64, lone surrogates, and nesting beyond Python's stack.
    """
    try:
        value = json.loads(text, parse_constant=_not_json, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _not_json(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number
