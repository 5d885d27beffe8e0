"""What goes wrong on the way up to the Hub, as one sentence each with a way out. errors.py has the way down.

Each of them means that nothing was published, unless the sentence says otherwise; what was sent stays on the Hub's
storage, where nobody sees it, and is not sent again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import HubError
from .errors import XET, clean, host, http_library

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TOKENS = "https://huggingface.co/settings/tokens"
LOGIN = "then `hf auth login` or set HF_TOKEN"
REINSTALL_HINT = "run the same command again: what has arrived is not sent again"
_FULL = re.compile(r"quota|storage|billing|payment|too large|limit (reached|exceeded)|exceed", re.IGNORECASE)
"""What the Hub says when an account has no room left."""
_NO_HUB = ("Malformed response", "preupload_info is", "lfs_", "Invalid server response", "Invalid etag")
"""How huggingface_hub's errors begin about answers that no Hub gives."""


@contextmanager
def upload_errors(repo: str) -> Iterator[None]:
    """Raise HubError for every known failure of the block; what is not known passes unchanged."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, http_library().HTTPError) as error:
        explained = explain_upload(error, repo)
        if explained is None:
            raise
        raise explained from error


def explain_upload(error: Exception, repo: str) -> HubError | None:
    """The HubError that says what `error` means for a push to `repo`, None for an error that is not known here."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if str(error).startswith("Error while uploading") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps what happens to a large file
    if isinstance(error, LocalTokenNotFoundError):
        return HubError(
            "there is no token, and the Hub takes nothing without one",
            hint=f"`hf auth login` or set HF_TOKEN, with a token that may write: {TOKENS}",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{repo}: HF_HUB_OFFLINE forbids to reach the Hub", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo)
    if isinstance(error, http_library().TransportError):
        return _explain_network(error, repo)
    return _explain_words(error, repo)


def _explain_answer(error: HfHubHTTPError, repo: str) -> HubError:
    """The Hub, or its storage, answered with a status of 400 or more."""
    from huggingface_hub import errors as hf

    status = int(error.response.status_code)
    said = clean(error.server_message or "no reason given", error)
    if status == 429:
        wait = error.response.headers.get("Retry-After", "")
        return HubError(
            f"{host()} says that there were too many requests (429)",
            hint=f"wait {f'{wait} seconds' if wait.isdigit() else 'some minutes'}, then {REINSTALL_HINT}",
        )
    if status in (402, 413, 507) or (status == 403 and _FULL.search(said)):
        return _full(repo, said)
    if status >= 500:
        return HubError(f"{host()} has trouble (HTTP {status})", hint=f"wait a little, then {REINSTALL_HINT}")
    if status == 403 and error.response.request.url.host != host():
        return HubError(
            f"{repo}: the Hub's storage refuses a file (HTTP 403)", hint=f"the link was too old: {REINSTALL_HINT}"
        )
    if status == 401:
        return HubError("the Hub refuses the token: it is wrong or expired", hint=f"get a new one on {TOKENS}, {LOGIN}")
    if status in (409, 412):
        return HubError(
            f"{repo} was changed by somebody else while this push was under way: nothing was published",
            hint="see what has changed, then run the same command again",
        )
    if isinstance(error, hf.RevisionNotFoundError):
        return HubError(f"{repo} has no such branch any more", hint="run the same command again")
    if isinstance(error, hf.RepositoryNotFoundError):
        return HubError(
            f"{repo}: there is no such repository on {host()}, or this token may not see it",
            hint=f"check the name, and the token's rights on {TOKENS}",
        )
    if isinstance(error, hf.DisabledRepoError):
        return HubError(f"{repo} has been disabled on the Hub", hint="push to another repository")
    if status == 403:
        return HubError(
            f"{repo}: this token may not write there (HTTP 403: {said})",
            hint=f"use a token with write access to it ({TOKENS}), {LOGIN}; or name a repository of your own",
        )
    return HubError(f"{repo}: {host()} answers HTTP {status}: {said}", hint="check the name and the token's rights")


def _explain_network(error: Exception, repo: str) -> HubError:
    http = http_library()
    began = (http.ReadError, http.WriteError, http.CloseError, http.RemoteProtocolError, http.TimeoutException)
    if isinstance(error, began) and not isinstance(error, http.ConnectTimeout):
        return _broken_off(repo)
    return HubError(f"{host()} cannot be reached", hint="check the network, the proxy and HF_ENDPOINT")


def _explain_words(error: Exception, repo: str) -> HubError | None:
    """Errors that are known by their words alone: of hf_xet, and some that huggingface_hub makes of an answer."""
    words = str(error)
    if isinstance(error, json.JSONDecodeError) or words.startswith(_NO_HUB):
        return HubError(f"{host()} does not answer like a Hugging Face Hub", hint="check HF_ENDPOINT and the proxy")
    if words.startswith("LFS batch API returned errors"):
        said = clean(words.partition("\n")[2])
        return (
            _full(repo, said)
            if _FULL.search(said)
            else HubError(f"{repo}: the Hub refuses: {said}", hint=REINSTALL_HINT)
        )
    if words.startswith("Invalid metadata in README.md"):
        return HubError(
            f"{repo}: the Hub refuses the card's metadata: {clean(words.partition(chr(10))[2])}",
            hint="look at license and language in the source's README.md",
        )
    if getattr(error, "errno", None) is None and (begin := XET.match(words)):
        if begin[1] == "Authentication error":
            return HubError("the Hub's storage refuses the token", hint=f"get a new one on {TOKENS}, {LOGIN}")
        return _broken_off(repo, "; HF_HUB_DISABLE_XET=1 goes around the Xet storage")
    return None


def _broken_off(repo: str, more: str = "") -> HubError:
    return HubError(f"{repo}: the upload broke off: nothing was published", hint=f"{REINSTALL_HINT}{more}")


def _full(repo: str, said: str) -> HubError:
    return HubError(
        f"{repo}: the account has no room for this on the Hub: {said}",
        hint=f"make room or get more (https://huggingface.co/settings/billing), then {REINSTALL_HINT}",
    )
