"""Positions of the tensors of a Hub model, from the headers of its shards: kilobytes instead of gigabytes."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..checkpoint.container import MAX_HEADER, Placed, header_length, parse_header
from ..checkpoint.files import SINGLE
from ..checkpoint.reader import by_index, check_single, read_index
from ..errors import UnavailableError
from .endpoint import endpoint
from .errors import RETRY_HINT, hub_errors
from .listing import Listing, RemoteFile
from .transfer import check_shards

FIRST = 1 << 17
"""Bytes of the first request for a shard: most headers are shorter."""


def remote_tensors(listing: Listing, index: Path, folder: Path) -> dict[str, Placed]:
    """Every tensor of the model by name, with its position in the shard that will be fetched into `folder`.

    index: path of the index, already fetched if the model has one. HubError for failures of the Hub, InputError for
    headers that no checkpoint has.
    """

    def header(path: Path) -> dict[str, Placed]:
        return _read_header(listing, listing.file(path.name), path)

    with hub_errors(listing.id, listing.revision):
        if index.name not in listing.names:
            return header(folder / SINGLE)
        check_shards(listing, index)
        weight_map = read_index(index)
        check_single(Path(listing.id), weight_map, single=SINGLE in listing.names)
        return by_index(folder, weight_map, header)


def _read_header(listing: Listing, file: RemoteFile, path: Path) -> dict[str, Placed]:
    """Positions of the tensors of a file on the Hub that will be fetched to `path`."""
    head = _beginning(listing, file, min(FIRST, file.size))
    length = header_length(head, file.size, path)
    if 8 + length > len(head):
        head = _beginning(listing, file, 8 + min(length, MAX_HEADER))
    return parse_header(path, head, file.size)


def _beginning(listing: Listing, file: RemoteFile, count: int) -> bytes:
    """The first `count` bytes of a file, with the session, token and retries of huggingface_hub."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    url = hf_hub_url(listing.id, file.name, revision=listing.revision, endpoint=endpoint())
    headers = build_hf_headers(library_name="slideconvert", library_version=__version__)
    # Not as a stream: huggingface_hub does not retry interrupted streams.
    response = http_backoff("GET", url, headers={**headers, "Range": f"bytes=0-{count - 1}"}, follow_redirects=True)
    hf_raise_for_status(response)
    body: bytes = response.content[:count]
    if len(body) < count:
        raise UnavailableError(
            f"{listing.id}: {file.name} ends after {len(body):,} bytes, {count:,} were requested",
            hint=f"{RETRY_HINT}; if it happens again, check the proxy",
        )
    return body
