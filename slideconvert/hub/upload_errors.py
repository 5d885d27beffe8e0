"""Known failures of uploads, each as one sentence with a way out; errors.py has those of downloads.

After each of them nothing is published, unless the sentence says otherwise. Files that were sent stay in the Hub's
storage, invisible, and are not sent again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import HubError, UnavailableError
from .answers import BUILT_IN, foreign_answer
from .endpoint import host
from .errors import XET, clean, http_library, overloaded, server_message

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKENS = "https://huggingface.co/settings/tokens"
LOGIN = "then run `hf auth login` or set HF_TOKEN"
RESUME_HINT = "run the same command again: what has arrived is not sent again"
_FULL = re.compile(r"quota|storage|billing|payment|too large|limit (reached|exceeded)|exceed", re.IGNORECASE)
"""Messages of the Hub about an account without storage."""


@contextmanager
def upload_errors(repo: str) -> Iterator[None]:
    """Raise HubError for every known failure of the block; other errors pass unchanged."""
    try:
        yield
    except (OSError, RuntimeError, *BUILT_IN, http_library().HTTPError) as error:
        explained = explain_upload(error, repo) or foreign_answer(error)
        if explained is None:
            raise
        raise explained from error


def explain_upload(error: Exception, repo: str) -> HubError | None:
    """The HubError that explains `error` for a push to `repo`, None for an unknown error."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if str(error).startswith("Error while uploading") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps errors of large files
    if isinstance(error, LocalTokenNotFoundError):
        return HubError(
            "no token found, and uploads to the Hub require one",
            hint=f"run `hf auth login` or set HF_TOKEN with a token that has write access: {TOKENS}",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{repo}: HF_HUB_OFFLINE forbids access to the Hub", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo)
    if isinstance(error, http_library().TransportError):
        return _explain_network(error, repo)
    return _explain_text(error, repo)


def _explain_answer(error: HfHubHTTPError, repo: str) -> HubError:
    """The error for an answer of the Hub or its storage with a status of 400 or more."""
    from huggingface_hub import errors as hf

    status = int(error.response.status_code)
    message = server_message(error)
    if status in (402, 413, 507) or (status == 403 and _FULL.search(message)):
        return _full(repo, message)
    if busy := overloaded(error, RESUME_HINT):
        return busy
    if status == 403 and error.response.request.url.host != host():
        return UnavailableError(
            f"{repo}: the Hub's storage refuses a file (HTTP 403)", hint=f"the upload link has expired: {RESUME_HINT}"
        )
    if status == 401:
        return HubError("the Hub refuses the token: it is wrong or expired", hint=f"get a new one on {TOKENS}, {LOGIN}")
    if status in (409, 412):
        return UnavailableError(
            f"{repo} changed during this push: nothing was published",
            hint="check the repository, then run the same command again",
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return UnavailableError(f"{repo} no longer has this branch", hint="run the same command again")
    if isinstance(error, hf.RepositoryNotFoundError):
        return HubError(
            f"{repo}: no such repository on {host()}, or this token has no access to it",
            hint=f"check the name, and the token's permissions on {TOKENS}",
        )
    if isinstance(error, hf.DisabledRepoError):
        return HubError(f"{repo} has been disabled on the Hub", hint="push to another repository")
    if status == 403:
        return HubError(
            f"{repo}: this token has no write access (HTTP 403: {message})",
            hint=f"use a token with write access to it ({TOKENS}), {LOGIN}; or use a repository of your own",
        )
    return HubError(
        f"{repo}: {host()} answers HTTP {status}: {message}", hint="check the name and the token's permissions"
    )


def _explain_network(error: Exception, repo: str) -> HubError:
    http = http_library()
    began = (http.ReadError, http.WriteError, http.CloseError, http.RemoteProtocolError, http.TimeoutException)
    if isinstance(error, began) and not isinstance(error, http.ConnectTimeout):
        return _interrupted(repo)
    return UnavailableError(f"{host()} cannot be reached", hint="check the network, the proxy and HF_ENDPOINT")


def _explain_text(error: Exception, repo: str) -> HubError | None:
    """Errors that are known by their text alone: those of hf_xet, and some of huggingface_hub."""
    text = str(error)
    if text.startswith("LFS batch API returned errors"):
        message = clean(text.partition("\n")[2])
        full = _FULL.search(message)
        return _full(repo, message) if full else HubError(f"{repo}: the Hub refuses: {message}", hint=RESUME_HINT)
    if text.startswith("Invalid metadata in README.md"):
        return HubError(
            f"{repo}: the Hub refuses the card's metadata: {clean(text.partition(chr(10))[2])}",
            hint="check license and language in the source's README.md",
        )
    if getattr(error, "errno", None) is None and (begin := XET.match(text)):
        if begin[1] == "Authentication error":
            return HubError("the Hub's storage refuses the token", hint=f"get a new one on {TOKENS}, {LOGIN}")
        return _interrupted(repo, "; HF_HUB_DISABLE_XET=1 bypasses Xet")
    return None


def _interrupted(repo: str, more: str = "") -> HubError:
    return UnavailableError(f"{repo}: the upload was interrupted: nothing was published", hint=f"{RESUME_HINT}{more}")


def _full(repo: str, message: str) -> HubError:
    return HubError(
        f"{repo}: the account has no storage left on the Hub: {message}",
        hint=f"free or buy storage (https://huggingface.co/settings/billing), then {RESUME_HINT}",
    )
