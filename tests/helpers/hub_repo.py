"""What tests/helpers/hub_server.py is made of: its models, the requests it saw, the faults it is told to make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Refusal(Exception):
    """An answer with an error status, in the words of the Hub: X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        super().__init__(message)


@dataclass(frozen=True)
class Account:
    """Whose a token is. orgs: name -> role there. role: of the token, read, write or fineGrained; scopes: what a
    fine-grained one may write, names of users and organizations."""

    name: str
    orgs: Mapping[str, str] = field(default_factory=dict)
    role: str = "write"
    scopes: tuple[str, ...] = ()

    def may_write(self, owner: str) -> bool:
        belongs = owner == self.name or self.orgs.get(owner, "read") != "read"
        return belongs and (self.role == "write" or (self.role == "fineGrained" and owner in self.scopes))

    def whoami(self) -> dict[str, Any]:
        token: dict[str, Any] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scopes = [{"entity": {"type": "user", "name": name}, "permissions": ["repo.write"]} for name in self.scopes]
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scopes}
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        return {"type": "user", "name": self.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}


@dataclass(frozen=True)
class Request:
    """One request as it came in. path without query; token: whether an Authorization header was sent."""

    method: str
    path: str
    range: str | None
    token: bool


@dataclass
class Fault:
    """Spoils the first `times` requests whose path ends with `path` and whose method is `method`.

    drop_after: close the connection after so many bytes of the body (a HEAD: without any answer; a PUT: of the body
    that comes in); with reset, tear it down (TCP RST); with stall, send or take nothing more but keep it open.
    then: called when the fault happens, before anything else.
    body: serve these bytes instead, under the headers of the right ones.
    status, headers: answer with this error instead, and the body if there is one.
    """

    path: str
    times: int = 1
    method: str = "GET"
    drop_after: int | None = None
    reset: bool = False
    stall: bool = False
    body: bytes | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    then: Callable[[], object] | None = None


@dataclass
class Repo:
    """A model: its commits (40 hex -> files), which commit a branch is, and what lies in its storage (sha256 ->
    content), committed or not. messages: of the commits that were pushed."""

    lfs: Callable[[str], bool]
    gated: bool
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch or of a commit hash, None if there is neither."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def add(self, branch: str, files: Mapping[str, bytes]) -> str:
        """A commit with these files on a branch; its hash."""
        tree = sorted((name, blob_sha1(content)) for name, content in files.items())
        commit = hashlib.sha1(repr((len(self.commits), tree)).encode()).hexdigest()
        self.commits[commit], self.branches[branch] = dict(files), commit
        return commit

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]

    def stored(self, oid: str) -> bytes | None:
        """A large file by its sha256, whether a commit names it or not."""
        known = {sha256(content): content for files in self.commits.values() for content in files.values()}
        return {**known, **self.storage}.get(oid)

    def etag(self, name: str, content: bytes) -> str:
        """SHA-256 of a large file, git's blob SHA-1 of a small one."""
        return sha256(content) if self.lfs(name) else blob_sha1(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".model"))
