"""Where a push goes: the repository as it is now, and whether this token may write to it. Reads only.

whoami-v2           the user, its organizations, what the token is for
models/ID           the files at the branch's head, with sizes and checksums; or that there is no such repository
auth-check/write    whether the token may write, where there is one; else whoami must allow it to be made
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
from .errors import endpoint, host
from .listing import RemoteFile, remote_file
from .snapshot import COMMIT
from .upload_errors import TOKENS, upload_errors

MAIN = "main"


@dataclass(frozen=True)
class Target:
    """A branch of a repository that may be written to.

    id: "user/name". branch. commit: the branch's head, None if the branch is to be made. files: what lies there, or
    will once the branch is made.
    exists: whether the repository does; private: whether it is, None if it is to be made. own: whether the branch has
    come to differ from main, or is main.
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
        """The address of the branch for people, without credentials."""
        hub = urlsplit(endpoint())
        where = f"{hub.scheme}://{hub.netloc.rpartition('@')[2]}{hub.path}"
        return f"{where}/{self.id}" + (f"/tree/{self.branch}" if self.branch != MAIN else "")


def hub_api() -> Any:
    """huggingface_hub's HfApi for the Hub that HF_ENDPOINT names, with the token of its usual places."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="slideconvert", library_version=__version__)


def find_target(repo: str, branch: str | None = None) -> Target:
    """The branch (None: main) of `repo` ("user/name", or "name" of the token's user) to push to.

    InputError for a name that cannot be, HubError if the token may not write there or make it, or the Hub cannot
    be asked.
    """
    branch = branch or MAIN
    if not valid_id(repo):
        raise InputError(f"'{repo}' is no name for a repository", hint="a name looks like user/model-int8-2of8")
    if COMMIT.fullmatch(branch) or branch.startswith("refs/") or not branch.strip():
        raise InputError(f"--revision '{branch}' is no branch", hint="name a branch; it is made if it is not there")
    with upload_errors(repo):
        api = hub_api()
        who = api.whoami()
        user = str(who["name"])
        repo = repo if "/" in repo else f"{user}/{repo}"
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
    """The state of a branch; whatever huggingface_hub raises passes, but for a repository or branch to be made."""
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
        info = api.model_info(repo, files_metadata=True)  # which the branch will be made from
        return Target(repo, branch, None, _files(info), True, info.private, own=False)
    own = branch == MAIN or api.model_info(repo).sha != info.sha
    return Target(repo, branch, info.sha, _files(info), True, info.private, own)


def read_commit(api: Any, repo: str, commit: str) -> tuple[RemoteFile, ...]:
    """The files at a commit; whatever huggingface_hub raises passes."""
    return _files(api.model_info(repo, revision=commit, files_metadata=True))


def _files(info: Any) -> tuple[RemoteFile, ...]:
    return tuple(remote_file(sibling) for sibling in info.siblings or ())


def _refuse_reading_token(who: Mapping[str, Any], repo: str) -> None:
    """HubError if the token is known to be for reading only."""
    role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubError(
            f"{repo}: the token of {who['name']} is for reading only",
            hint=f"make one that may write on {TOKENS}, then `hf auth login` or set HF_TOKEN",
        )


def _check_may_create(who: Mapping[str, Any], repo: str) -> None:
    """HubError if this user, or this token, may not make `repo`, as far as whoami tells."""
    owner = repo.split("/")[0]
    roles = {str(org.get("name")): org.get("roleInOrg") for org in who.get("orgs") or ()}
    if owner != who["name"] and (owner not in roles or roles[owner] == "read"):
        mine = ", ".join([str(who["name"]), *(name for name, role in roles.items() if role != "read")])
        raise HubError(
            f"{repo}: there is no such repository on {host()} that {who['name']} may see, and {who['name']} may not "
            f"make one for {owner}",
            hint=f"check the name; this token can write for {mine}",
        )
    token = (who.get("auth") or {}).get("accessToken") or {}
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") != "fineGrained" or scopes is None:
        return
    names = [(scope.get("entity") or {}).get("name") for scope in scopes if "repo.write" in scope["permissions"]]
    if owner not in names:
        raise HubError(
            f"{repo}: the fine-grained token may not make repositories for {owner}",
            hint=f"give it write access to the repositories of {owner} on {TOKENS}",
        )
