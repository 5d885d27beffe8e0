"""Names of models on the Hub."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?", re.ASCII)


def valid_id(hub_id: str) -> bool:
    """Whether the Hub could have a model of this name: "org/name" or "name"."""
    fits = bool(_HUB_ID.fullmatch(hub_id)) and len(hub_id) <= 96
    return fits and not any(bad in hub_id for bad in ("--", "..")) and not hub_id.endswith(".git")
