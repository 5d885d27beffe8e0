"""What goes wrong on the way to the Hub and back, as one sentence each with a way out.

huggingface_hub raises its own errors for answers of the Hub, those of its HTTP library (httpx in 1.x, httpx2 in
2.x) for the network, plain OSErrors for the disk, and passes on what hf_xet raises: Python's built-in exceptions
with a known beginning. All that is known is told apart here; anything else passes with its traceback.

The sentences are made of what the user typed, of numbers and of what the server said. The server's words are
cleaned of tokens first, and addresses are cut to their host: both can carry credentials.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import HubError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

XET = re.compile(
    r"(Previous task error|Task error|Network error|Rate limited|Server error|Timeout|Data integrity error"
    r"|Authentication error|Not found|I/O error): "
)
"""How the texts of hf_xet's errors begin (xet_pkg/src/error.rs in huggingface/xet-core)."""
_CREDENTIALS = re.compile(r"\b(hf_|api_org_)\w+|(?<=Bearer )\S+|(?<=://)[^/@\s]+(?=@)")
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
REINSTALL_HINT = "run the same command again"
_AGAIN = f"{REINSTALL_HINT}: finished files are kept"


def endpoint() -> str:
    """The address of the Hub: HF_ENDPOINT, or the public Hub. Read at every call, unlike huggingface_hub's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@contextmanager
def hub_errors(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """Raise HubError for every known failure of the block; what is not known passes unchanged."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, http_library().HTTPError) as error:
        # Only candidates: explain() knows a few errors of these families and leaves the rest alone.
        explained = explain(error, hub_id, revision)
        if explained is None:
            raise
        raise explained from error


def explain(error: Exception, hub_id: str, revision: str | None = None) -> HubError | None:
    """The HubError that says what `error` means for `hub_id`, None for an error that is not known here."""
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # hf_hub_download hides the real error behind "not in the cache"
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, hub_id, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return offline(hub_id, revision)
    if isinstance(error, FileMetadataError | json.JSONDecodeError):
        return HubError(f"{host()} does not answer like a Hugging Face Hub", hint="check HF_ENDPOINT and the proxy")
    if isinstance(error, http_library().TransportError | LocalEntryNotFoundError):
        return _explain_network(error, hub_id)
    if isinstance(error, ValueError) and str(error).startswith("The file is too large to be downloaded"):
        return HubError(
            f"{hub_id} has a file of over 50 GB, which the Hub gives out through Xet only",
            hint="pip install hf_xet, and unset HF_HUB_DISABLE_XET",
        )
    return _explain_xet(error, hub_id) or (_explain_disk(error, hub_id) if isinstance(error, OSError) else None)


def offline(hub_id: str, revision: str | None) -> HubError:
    """HF_HUB_OFFLINE is set and `hub_id` is not on this machine."""
    return HubError(
        f"{hub_id}{_at(revision)} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it",
        hint="unset HF_HUB_OFFLINE, or pass a local folder",
    )


def _explain_answer(error: HfHubHTTPError, hub_id: str, revision: str | None) -> HubError:
    """The Hub answered, with a status of 400 or more."""
    from huggingface_hub import errors as hf

    status = int(error.response.status_code)
    if isinstance(error, hf.GatedRepoError):
        return HubError(
            f"{hub_id} is gated, and {'no token was sent' if status == 401 else 'this account has no access'}",
            hint=f"ask for access on https://huggingface.co/{hub_id}, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, hf.RepositoryNotFoundError):
        return HubError(
            f"{hub_id}: there is no such model on {host()}, or it is private; nor is there a folder of that name",
            hint="check the spelling; for a private model `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return HubError(
            f"{hub_id} has no revision '{revision or 'main'}'",
            hint=f"branches, tags and commits: https://huggingface.co/{hub_id}/commits",
        )
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return HubError(f"{hub_id}: {host()} lists a file that it does not have", hint="tell the model's authors")
    if isinstance(error, hf.DisabledRepoError):
        return HubError(f"{hub_id} has been disabled on the Hub", hint="choose another model")
    if status == 401:
        return HubError("the Hub refuses the token", hint="`hf auth login` again, or correct HF_TOKEN")
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        return HubError(
            f"{host()} says that there were too many requests (429)",
            hint=f"wait {f'{wait} seconds' if wait.isdigit() else 'some minutes'}, then {_AGAIN}; with a token "
            "(`hf auth login`) the limits are higher",
        )
    if status >= 500:
        return HubError(f"{host()} has trouble (HTTP {status})", hint=f"wait a little, then {_AGAIN}")
    said = clean(error.server_message or "no reason given", error)
    return HubError(f"{hub_id}: {host()} answers HTTP {status}: {said}", hint="check the token's rights")


def _explain_network(error: Exception, hub_id: str) -> HubError:
    http = http_library()
    began = (http.ReadError, http.WriteError, http.CloseError, http.RemoteProtocolError, http.ReadTimeout)
    if isinstance(error, began):
        return _broken_off(hub_id)
    return HubError(
        f"{host()} cannot be reached",
        hint="check the network, the proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is already in the cache; "
        "a local folder needs no network",
    )


def _explain_disk(error: OSError, hub_id: str) -> HubError | None:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            f"{hub_id}: the disk is full{where}",
            hint=f"make room or point HF_HOME to a larger disk, then {_AGAIN}",
        )
    if error.errno in NOT_WRITABLE:
        return HubError(
            f"{hub_id}: cannot write{where}", hint="choose another folder, or point HF_HOME to one of yours"
        )
    if error.errno is None and str(error).startswith("Consistency check failed"):
        return _broken_off(hub_id)  # http_get: the connection closed in order, but too early
    return None


def _explain_xet(error: Exception, hub_id: str) -> HubError | None:
    if getattr(error, "errno", None) is not None or not (begin := XET.match(str(error))):
        return None
    if "No space left on device" in str(error):
        return _explain_disk(OSError(errno.ENOSPC, ""), hub_id)
    if begin[1] == "Authentication error":
        return HubError("the Hub's storage refuses the token", hint="`hf auth login` again, or correct HF_TOKEN")
    return _broken_off(hub_id, "; HF_HUB_DISABLE_XET=1 goes around the Xet storage")


def _broken_off(hub_id: str, more: str = "") -> HubError:
    return HubError(f"{hub_id}: the download broke off", hint=f"{_AGAIN}{more}")


def clean(said: str, error: HfHubHTTPError | None = None) -> str:
    """The first line of what a server said, without credentials: neither what looks like a token nor the one sent."""
    from huggingface_hub import get_token

    sent = error.response.request.headers.get("authorization", "") if error else ""
    line = (said.strip().splitlines() or [""])[0]
    for token in (sent.removeprefix("Bearer ").strip(), get_token()):
        line = line.replace(token, "***") if token else line
    return _CREDENTIALS.sub("***", line)[:200]


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def host() -> str:
    """The name of the machine that is asked, without credentials."""
    return urlsplit(endpoint()).hostname or "HF_ENDPOINT"


def http_library() -> ModuleType:
    """The HTTP library under huggingface_hub: same class names, another package since 2.0."""
    from huggingface_hub import __version__

    return import_module("httpx" if int(__version__.split(".")[0]) < 2 else "httpx2")
