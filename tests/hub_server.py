"""A Hugging Face Hub on the loopback: as much of its HTTP API as huggingface_hub needs to download a model.

    with HubServer() as hub:
        commit = hub.add_repo("org/model", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults.append(Fault("model.safetensors", drop_after=1000))
        ...                                  # HF_ENDPOINT=hub.url
        assert [r.range for r in hub.requests_for("model.safetensors")] == [None, "bytes=1000-"]

As on the real Hub, a large file ("LFS") is answered with a redirect to a storage host, which must not be sent the
token: here the same server under its other name, localhost instead of 127.0.0.1. Nothing mentions Xet, so
huggingface_hub transfers by plain HTTP. `ROUTES` is where the upload side can be added: method, path, handler.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit


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


class HubServer:
    """The server; a context manager. url: its address. requests: all that came in. faults: what to do wrong next.

    tokens: known token -> ids of the private and gated models that it may read. stalled: set by a Fault(stall=True).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        lfs: Callable[[str], bool] | Collection[str] | None = None,
        gated: bool = False,
        private: bool = False,
        branch: str = "main",
    ) -> str:
        """Put a model there, or a further commit on a branch of it. Returns the commit.

        lfs: which files count as large; by default weights and *.model.
        """
        large = lfs if callable(lfs) else (lambda name: name in lfs) if lfs is not None else _is_large
        repo = self.repos.setdefault(repo_id, Repo(large, gated, private))
        tree = sorted((name, blob_sha1(content)) for name, content in files.items())
        commit = hashlib.sha1(json.dumps([repo_id, tree]).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit

    def requests_for(self, name: str, method: str = "GET") -> list[Request]:
        """The requests for a file, oldest first, without those that only led to the storage host."""
        paths = [r for r in self.requests if r.method == method and r.path.endswith(f"/{name}")]
        stored = [r for r in paths if r.path.startswith("/cdn/")]
        return stored or paths

    def record(self, request: Request) -> Fault | None:
        """Note a request; the fault that is to spoil it, if one is left."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fault.method == request.method and request.path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".model"))


class _Refusal(Exception):
    """An answer with an error status, in the words of the Hub: X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}
        super().__init__(message)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait for an acknowledgement
    fault: Fault | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: HubServer.requests is the log."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        token = self.headers.get("Authorization")
        self.fault = self.hub.record(Request(self.command, path, self.headers.get("Range"), token is not None))
        try:
            if self.fault and self.fault.status:
                return self.answer(self.fault.status, b"", self.fault.headers)
            for method, pattern, handler in ROUTES:
                # HEAD is GET without the body; the path is matched before unquoting: a revision may hold a slash.
                if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, url.path)):
                    words = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                    return handler(self, parse_qs(url.query), **words)
            raise _Refusal(404)
        except _Refusal as refusal:
            self.answer(refusal.status, b"", refusal.headers)
        except ConnectionError:
            self.close_connection = True  # the client has gone: nobody to tell

    do_GET = do_HEAD = handle_request

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send an answer. The fault of this request may change the bytes or break off among them."""
        fault = self.fault or Fault("")
        if self.command == "HEAD" and fault.drop_after is not None:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: fault.drop_after])
        if fault.drop_after is not None:
            self.close_connection = True
            if fault.stall:
                self.hub.stalled.set()
                self.hub.closing.wait()
            if fault.reset:  # lingering for zero seconds is how a socket is closed with RST instead of FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer_file(self, content: bytes, headers: Mapping[str, str]) -> None:
        """Send a file, or the rest of it if the client has the beginning."""
        if self.fault and self.fault.body is not None:
            content = self.fault.body
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        headers = {**headers, "Accept-Ranges": "bytes"}
        if start is None:
            return self.answer(200, content, headers)
        first, total = int(start[1]), len(content)
        self.answer(206, content[first:], {**headers, "Content-Range": f"bytes {first}-{total - 1}/{total}"})

    def repo(self, repo_id: str, *, for_content: bool) -> Repo:
        """The model if this request may see it. A gated model shows its listing to all, its files to few."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        allowed = repo_id in self.hub.tokens.get(token, ())
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not allowed):
            raise _Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and for_content and not allowed:
            raise _Refusal(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision."""
        commit = repo.commit(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    def model_info(self, query: Mapping[str, list[str]], id: str, revision: str = "main") -> None:
        repo = self.repo(id, for_content=False)
        commit, files = self.tree(repo, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in files]
        if "blobs" in query:
            for sibling, (name, content) in zip(siblings, files.items(), strict=True):
                sibling |= {"size": len(content), "blobId": blob_sha1(content)} | _lfs(repo, name, content)
        gated = "manual" if repo.gated else False
        self.answer_json({"id": id, "sha": commit, "private": repo.private, "gated": gated, "siblings": siblings})

    def list_tree(self, _: Mapping[str, list[str]], id: str, revision: str) -> None:
        repo = self.repo(id, for_content=False)
        _, files = self.tree(repo, revision)
        entries = files.items()
        self.answer_json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": blob_sha1(content)}
                | _lfs(repo, name, content, digest="oid")
                for name, content in entries
            ]
        )

    def resolve(self, _: Mapping[str, list[str]], id: str, revision: str, name: str) -> None:
        repo = self.repo(id, for_content=True)
        commit, files = self.tree(repo, revision)
        if name not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = files[name]
        etag = f'"{repo.etag(name, content)}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag}
        if not repo.lfs(name):
            return self.answer_file(content, headers)
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        location = f"http://localhost:{self.hub.port}/cdn/{id}/{commit}/{quote(name)}"
        self.answer(302, b"", {**headers, **linked, "Location": location})

    def storage(self, _: Mapping[str, list[str]], id: str, revision: str, name: str) -> None:
        """The storage host knows no tokens: its addresses are signed, on the real Hub."""
        repo = self.hub.repos[id]
        content = repo.commits[revision][name]
        self.answer_file(content, {"ETag": f'"{repo.etag(name, content)}"'})


def _lfs(repo: Repo, name: str, content: bytes, digest: str = "sha256") -> dict[str, Any]:
    """The listing's entry for a large file; the two listings name its digest differently."""
    if not repo.lfs(name):
        return {}
    return {"lfs": {digest: sha256(content), "size": len(content), "pointerSize": 134}}


def _routes() -> Iterator[tuple[str, str, Callable[..., None]]]:
    model = r"(?P<id>[^/]+/[^/]+?|[^/]+?)"
    at = r"(?P<revision>[^/]+)"
    yield "GET", rf"/api/models/{model}/revision/{at}", _Handler.model_info
    yield "GET", rf"/api/models/{model}/tree/{at}", _Handler.list_tree
    yield "GET", rf"/api/models/{model}", _Handler.model_info
    yield "GET", rf"/cdn/{model}/{at}/(?P<name>.+)", _Handler.storage
    yield "GET", rf"/{model}/resolve/{at}/(?P<name>.+)", _Handler.resolve


ROUTES = list(_routes())
