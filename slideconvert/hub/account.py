"""The target of a push: the current state of the repository, and whether the token has write access. Read-only.

whoami-v2           the user, its organizations, the permissions of the token
models/ID           the files at the head of the branch, with sizes and checksums; 404 without a repository
auth-check/write    whether the token has write access to an existing repository; whoami decides for a new one
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..core.hub_id import valid_id
from ..errors import HubError, InputError
from .answers import EXPECTED, not_a_hub
from .endpoint import endpoint, host
from .listing import RemoteFile, commit_of, files_of
from .snapshot import COMMIT
from .upload_errors import TOKENS, upload_errors

MAIN = "main"


@dataclass(frozen=True)
class _Account:
    """Whose the token is, by whoami. orgs: organization -> role there. token_role: read, write, fineGrained or unknown.
    scopes: names of users and organizations for which a fine-grained token may write, None if the Hub does not say."""

    name: str
    orgs: Mapping[str, Any]
    token_role: Any
    scopes: tuple[str, ...] | None


@dataclass(frozen=True)
class Target:
    """A branch of a repository that may be written to.

    id: "user/name". commit: the head of the branch, None for a new branch. files: at the head of the branch, or of the
    one that a new branch starts from. exists: whether the repository exists. private: None for a new repository. own:
    whether the branch is main or differs from it.
    """

    id: str
    branch: str
    commit: str | None = None
    files: tuple[RemoteFile, ...] = ()
    exists: bool = False
    private: bool | None = None
    own: bool = True

    @property
    def url(self) -> str:
        """The web address of the branch, without credentials."""
        hub = urlsplit(endpoint())
        where = f"{hub.scheme}://{hub.netloc.rpartition('@')[2]}{hub.path}"
        return f"{where}/{self.id}" + (f"/tree/{self.branch}" if self.branch != MAIN else "")


def hub_api() -> Any:
    """An HfApi for the Hub at HF_ENDPOINT, with the token that huggingface_hub finds."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="slideconvert", library_version=__version__)


def find_target(repo: str, branch: str | None = None) -> Target:
    """The branch (None: main) of `repo` ("user/name", or "name" of the token's user) to push to.

    InputError for an invalid name. HubError if the token may not write to the repository or create it, or if the Hub
    does not answer.
    """
    branch = branch or MAIN
    if not valid_id(repo):
        raise InputError(f"'{repo}' is not a repository name", hint="a repository name looks like user/model-int8-2of8")
    if COMMIT.fullmatch(branch) or branch.startswith("refs/") or not branch.strip():
        raise InputError(
            f"--revision '{branch}' is not a branch", hint="name a branch; push creates it if it does not exist"
        )
    with upload_errors(repo):
        api = hub_api()
        who = _read_account(api.whoami())
        repo = repo if "/" in repo else f"{who.name}/{repo}"
        _refuse_reading_token(who, repo)
        found = read_target(api, repo, branch)
        if not found.exists:
            _check_may_create(who, repo)
        else:
            # Older versions of huggingface_hub can only ask whether the token may read.
            write = {"write": True} if "write" in inspect.signature(api.auth_check).parameters else {}
            api.auth_check(repo, **write)
    return found


def read_target(api: Any, repo: str, branch: str) -> Target:
    """The state of a branch. Errors of huggingface_hub pass, except for a missing repository or branch."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repo, revision=branch, files_metadata=True)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise
        return Target(repo, branch)
    except RevisionNotFoundError:
        if branch == MAIN:
            return Target(repo, branch, exists=True)  # a repository without any commit
        info = api.model_info(repo, files_metadata=True)  # the branch will start from main
        return Target(repo, branch, None, files_of(info), True, info.private, own=False)
    own = branch == MAIN or api.model_info(repo).sha != info.sha
    return Target(repo, branch, commit_of(info), files_of(info), True, info.private, own)


def read_commit(api: Any, repo: str, commit: str) -> tuple[RemoteFile, ...]:
    """The files at a commit. Errors of huggingface_hub pass."""
    return files_of(api.model_info(repo, revision=commit, files_metadata=True))


def _read_account(answer: Any) -> _Account:
    """The account in an answer to whoami-v2. HubError for an answer that no Hub gives."""
    try:
        token = (answer.get("auth") or {}).get("accessToken") or {}
        orgs = {str(org["name"]): org.get("roleInOrg") for org in answer.get("orgs") or ()}
        scopes = (token.get("fineGrained") or {}).get("scoped")
        if scopes is not None:
            named = (
                (scope.get("entity") or {}).get("name") for scope in scopes if "repo.write" in scope["permissions"]
            )
            scopes = tuple(map(str, named))
        if not isinstance(answer["name"], str):
            raise TypeError("name")
        return _Account(answer["name"], orgs, token.get("role"), scopes)
    except (LookupError, TypeError, AttributeError) as error:
        raise not_a_hub(EXPECTED["whoami"]) from error


def _refuse_reading_token(who: _Account, repo: str) -> None:
    """HubError if the token is known to be read-only."""
    if who.token_role == "read":
        raise HubError(
            f"{repo}: the token of {who.name} is read-only",
            hint=f"create a token with write access on {TOKENS}, then run `hf auth login` or set HF_TOKEN",
        )


def _check_may_create(who: _Account, repo: str) -> None:
    """HubError if this user or token may not create `repo`, as far as whoami shows."""
    owner = repo.split("/")[0]
    if owner != who.name and who.orgs.get(owner, "read") == "read":
        mine = ", ".join([who.name, *(name for name, role in who.orgs.items() if role != "read")])
        raise HubError(
            f"{repo}: {who.name} sees no repository of that name on {host()}, and may not create one for {owner}",
            hint=f"check the name; this token has write access to {mine}",
        )
    if who.token_role == "fineGrained" and who.scopes is not None and owner not in who.scopes:
        raise HubError(
            f"{repo}: the fine-grained token may not create repositories for {owner}",
            hint=f"give it write access to the repositories of {owner} on {TOKENS}",
        )
