"""The code that travels with a checkpoint of ours: the files that its config.json lists by sha256, and no others.

It is fetched so that the copy is whole: `verify` compares it, transformers run it where slideconvert is not installed.
We never run it. What else lies in the repository as code stays there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint.files import CONFIG
from ..errors import HubError
from ..runtime.slidesparse_record import RECORD, misplaced
from .snapshot import FileFacts
from .transfer import Transfer, discard


def fetch_code(transfer: Transfer, config: Path) -> dict[str, FileFacts]:
    """Fetch the code that the config.json at `config` lists, and say what each file is.

    What it lists and the repository lacks is left for `verify` to tell. HubError for a path that leads elsewhere, and
    for a file that is not the listed one, which is then deleted.
    """
    listing = transfer.listing
    there = {file.name: file for file in listing.code}
    found = {}
    for name, digest in _listed(config):
        if fault := misplaced(name):
            raise HubError(f"{listing.id}: {CONFIG} lists {fault}", hint="do not trust this checkpoint")
        if name in there:
            path, facts = transfer.get(there[name])
            if facts.sha256 != digest:
                discard(path)
                raise HubError(
                    f"{listing.id}: {name} has sha256 {facts.sha256}, its {CONFIG} lists {digest}: the file was "
                    "changed after conversion",
                    hint="do not trust this checkpoint; another --revision may be whole",
                )
            found[name] = facts
    return found


def _listed(config: Path) -> Iterator[tuple[str, str]]:
    """Paths and digests in the record of a config.json, none if it is not one of ours."""
    try:
        record = json.loads(config.read_text(encoding="utf-8")).get(RECORD)
    except (ValueError, AttributeError):
        return  # for those to say who open it
    kernels = record.get("kernels") if isinstance(record, Mapping) else None
    yield from (kernels.items() if isinstance(kernels, Mapping) else ())
