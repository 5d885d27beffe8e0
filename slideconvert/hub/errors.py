"""Known failures of downloads, each as one sentence with a way out; upload_errors.py has those of uploads.

huggingface_hub raises its own errors for answers of the Hub, those of its HTTP library (httpx in 1.x, httpx2 in 2.x)
for the network and plain OSErrors for the disk. hf_xet raises built-in exceptions with known prefixes. Unknown errors
pass with their traceback.

The sentences contain user input, numbers and the server's message. Tokens are removed from the message and URLs are
reduced to their host, since both can contain credentials.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import HubError, UnavailableError
from .answers import BUILT_IN, EXPECTED, foreign_answer, not_a_hub
from .endpoint import host

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

XET = re.compile(
    r"(Previous task error|Task error|Network error|Rate limited|Server error|Timeout|Data integrity error"
    r"|Authentication error|Not found|I/O error): "
)
"""Prefixes of hf_xet's error messages (xet_pkg/src/error.rs in huggingface/xet-core)."""
_CREDENTIALS = re.compile(r"\b(hf_|api_org_)\w+|(?<=Bearer )\S+|(?<=://)[^/@\s]+(?=@)")
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
RETRY_HINT = "run the same command again"
_RETRY = f"{RETRY_HINT}: finished files are kept"


@contextmanager
def hub_errors(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """Raise HubError for every known failure of the block; other errors pass unchanged."""
    try:
        yield
    except (OSError, RuntimeError, *BUILT_IN, http_library().HTTPError) as error:
        # Candidates: explain() knows some errors of these types and leaves the others alone.
        explained = explain(error, hub_id, revision) or foreign_answer(error)
        if explained is None:
            raise
        raise explained from error


def explain(error: Exception, hub_id: str, revision: str | None = None) -> HubError | None:
    """The HubError that explains `error` for `hub_id`, None for an unknown error."""
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # hf_hub_download hides the real error behind "not in the cache"
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, hub_id, revision)
    if isinstance(error, OfflineModeIsEnabled):
        return offline(hub_id, revision)
    if isinstance(error, FileMetadataError):
        return not_a_hub(EXPECTED["hf_hub_download"])
    if isinstance(error, http_library().TransportError | LocalEntryNotFoundError):
        return _explain_network(error, hub_id)
    if isinstance(error, ValueError) and str(error).startswith("The file is too large to be downloaded"):
        return HubError(
            f"{hub_id} has a file of over 50 GB, which the Hub serves only through Xet",
            hint="pip install hf_xet, and unset HF_HUB_DISABLE_XET",
        )
    return _explain_xet(error, hub_id) or (_explain_disk(error, hub_id) if isinstance(error, OSError) else None)


def offline(hub_id: str, revision: str | None) -> HubError:
    """The error for a model that is not on this machine while HF_HUB_OFFLINE is set."""
    return HubError(
        f"{hub_id}{_at(revision)} is not in the local cache, and HF_HUB_OFFLINE forbids fetching it",
        hint="unset HF_HUB_OFFLINE, or pass a local folder",
    )


def _explain_answer(error: HfHubHTTPError, hub_id: str, revision: str | None) -> HubError:
    """The error for an answer with a status of 400 or more."""
    from huggingface_hub import errors as hf

    status = int(error.response.status_code)
    if isinstance(error, hf.GatedRepoError):
        return HubError(
            f"{hub_id} is gated, and {'no token was sent' if status == 401 else 'this account has no access'}",
            hint=f"request access on https://huggingface.co/{hub_id}, then run `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, hf.RepositoryNotFoundError):
        return HubError(
            f"{hub_id}: no such model on {host()} (or it is private), and no such local folder",
            hint="check the spelling; for a private model, run `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return HubError(
            f"{hub_id} has no revision '{revision or 'main'}'",
            hint=f"see branches, tags and commits on https://huggingface.co/{hub_id}/commits",
        )
    if isinstance(error, hf.RemoteEntryNotFoundError):
        return HubError(
            f"{hub_id}: {host()} lists a file that it does not have", hint="report this to the model's authors"
        )
    if isinstance(error, hf.DisabledRepoError):
        return HubError(f"{hub_id} has been disabled on the Hub", hint="choose another model")
    if status == 401:
        return HubError("the Hub refuses the token", hint="run `hf auth login` again, or correct HF_TOKEN")
    if busy := overloaded(error, f"{_RETRY}; with a token (`hf auth login`) the limits are higher"):
        return busy
    return HubError(
        f"{hub_id}: {host()} answers HTTP {status}: {server_message(error)}", hint="check the token's permissions"
    )


def overloaded(error: HfHubHTTPError, retry: str) -> HubError | None:
    """The error for too many requests or a failure inside the Hub, None for other answers. retry: what helps then."""
    status = int(error.response.status_code)
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        seconds = f"{wait} seconds" if wait.isascii() and wait.isdecimal() else "some minutes"
        return UnavailableError(f"{host()} received too many requests (HTTP 429)", hint=f"wait {seconds}, then {retry}")
    if status >= 500:
        return UnavailableError(f"{host()} failed (HTTP {status})", hint=f"wait a minute, then {retry}")
    return None


def _explain_network(error: Exception, hub_id: str) -> HubError:
    http = http_library()
    began = (http.ReadError, http.WriteError, http.CloseError, http.RemoteProtocolError, http.ReadTimeout)
    if isinstance(error, began):
        return _interrupted(hub_id)
    return UnavailableError(
        f"{hub_id}: no such local folder, and {host()} cannot be reached",
        hint="check the network, the proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses the local cache; "
        "a local folder needs no network",
    )


def _explain_disk(error: OSError, hub_id: str) -> HubError | None:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            f"{hub_id}: the disk is full{where}",
            hint=f"free disk space or set HF_HOME to a larger disk, then {_RETRY}",
        )
    if error.errno in NOT_WRITABLE:
        return HubError(
            f"{hub_id}: cannot write{where}", hint="choose another folder, or set HF_HOME to a writable one"
        )
    if error.errno is None and str(error).startswith("Consistency check failed"):
        return _interrupted(hub_id)  # http_get: the connection was closed properly, but too early
    return None


def _explain_xet(error: Exception, hub_id: str) -> HubError | None:
    if getattr(error, "errno", None) is not None or not (begin := XET.match(str(error))):
        return None
    if "No space left on device" in str(error):
        return _explain_disk(OSError(errno.ENOSPC, ""), hub_id)
    if begin[1] == "Authentication error":
        return HubError("the Hub's storage refuses the token", hint="run `hf auth login` again, or correct HF_TOKEN")
    return _interrupted(hub_id, "; HF_HUB_DISABLE_XET=1 bypasses Xet")


def _interrupted(hub_id: str, more: str = "") -> HubError:
    return UnavailableError(f"{hub_id}: the download was interrupted", hint=f"{_RETRY}{more}")


def server_message(error: HfHubHTTPError) -> str:
    """The server's reason, without credentials."""
    return clean(error.server_message or "no reason given", error)


def clean(message: str, error: HfHubHTTPError | None = None) -> str:
    """The first line of a server's message, without anything that looks like a token and without the token sent."""
    from huggingface_hub import get_token

    sent = error.response.request.headers.get("authorization", "") if error else ""
    line = (message.strip().splitlines() or [""])[0]
    for token in (sent.removeprefix("Bearer ").strip(), get_token()):
        line = line.replace(token, "***") if token else line
    return _CREDENTIALS.sub("***", line)[:200]


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def http_library() -> ModuleType:
    """The HTTP library of huggingface_hub: httpx, or httpx2 with the same class names since 2.0."""
    from huggingface_hub import __version__

    return import_module("httpx" if int(__version__.split(".")[0]) < 2 else "httpx2")
