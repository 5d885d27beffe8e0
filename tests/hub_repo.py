"""What tests/hub_server.py is made of: its models, the requests it saw, the faults it is told to make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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

    drop_after: close the connection after so many bytes of the body (a HEAD: without any answer); with reset, tear
    it down (TCP RST); with stall, send nothing more but keep it open.
    body: serve these bytes instead, under the headers of the right ones.
    status, headers: answer with this error instead.
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


@dataclass
class Repo:
    """A model: its commits (40 hex -> files), and which commit a branch is."""

    lfs: Callable[[str], bool]
    gated: bool
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch or of a commit hash, None if there is neither."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def etag(self, name: str, content: bytes) -> str:
        """SHA-256 of a large file, git's blob SHA-1 of a small one."""
        return sha256(content) if self.lfs(name) else blob_sha1(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".model"))
