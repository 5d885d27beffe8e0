"""The code in a checkpoint of ours: exactly the files that its config.json lists with their sha256.

`download` fetches them so that the copy is complete: `verify` compares them, and transformers runs them where
slideconvert is not installed. slideconvert never runs them, and ignores other code of the repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint.files import CONFIG
from ..checkpoint.json_text import parse_json
from ..errors import HubError
from ..runtime.slidesparse_record import RECORD, misplaced
from .snapshot import FileFacts
from .transfer import Transfer, discard


def fetch_code(transfer: Transfer, config: Path) -> dict[str, FileFacts]:
    """Fetch the code that the config.json at `config` lists; sizes and hashes by name.

    `verify` reports files that are missing in the repository. HubError for a path outside the folder, and for a file
    whose sha256 differs, which is then deleted.
    """
    listing = transfer.listing
    present = {file.name: file for file in listing.code}
    found = {}
    for name, digest in _listed(config):
        if fault := misplaced(name):
            raise HubError(f"{listing.id}: {CONFIG} lists {fault}", hint="do not trust this checkpoint")
        if name in present:
            path, facts = transfer.get(present[name])
            if facts.sha256 != digest:
                discard(path)
                raise HubError(
                    f"{listing.id}: {name} has sha256 {facts.sha256}, its {CONFIG} lists {digest}: the file was "
                    "changed after conversion",
                    hint="do not trust this checkpoint; try another --revision",
                )
            found[name] = facts
    return found


def _listed(config: Path) -> Iterator[tuple[str, str]]:
    """Paths and digests in the record of a config.json; none if it is not one of ours."""
    try:
        record = parse_json(config.read_text(encoding="utf-8")).get(RECORD)
    except (ValueError, AttributeError):
        return  # opening the checkpoint reports this
    kernels = record.get("kernels") if isinstance(record, Mapping) else None
    yield from (kernels.items() if isinstance(kernels, Mapping) else ())
