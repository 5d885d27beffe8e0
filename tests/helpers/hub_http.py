"""How tests/helpers/hub_server.py answers: the Hub's HTTP API, route by route. The way up is in hub_upload.py."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from tests.helpers.hub_repo import Fault, Refusal, Repo, Request, blob_sha1, sha256
from tests.helpers.hub_upload import UPLOAD_ROUTES, Uploads

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer


class Handler(Uploads, BaseHTTPRequestHandler):
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
        if self.fault and self.fault.then:
            self.fault.then()
        try:
            self.respond(url)
        except ConnectionError:
            self.close_connection = True  # the client has gone: nobody to tell

    def respond(self, url: SplitResult) -> None:
        """Take the body and answer by the first route that fits."""
        try:
            self.body = self.take_body()
            if self.fault and self.fault.status:
                return self.answer(self.fault.status, self.fault.body or b"", self.fault.headers)
            for method, pattern, handler in ROUTES:
                # HEAD is GET without the body; the path is matched before unquoting: a revision may hold a slash.
                if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, url.path)):
                    words = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                    return handler(self, parse_qs(url.query), **words)
            raise Refusal(404)
        except Refusal as refusal:
            self.answer(refusal.status, b"", refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send an answer. The fault of this request may change the bytes or break off among them."""
        fault = self.fault if self.fault and self.command != "PUT" else Fault("")
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
        body = json.dumps(value).encode()
        if self.fault and self.fault.body is not None:
            body = self.fault.body
        self.answer(200, body, {"Content-Type": "application/json"})

    def answer_file(self, content: bytes, headers: Mapping[str, str]) -> None:
        """Send a file, or the rest of it if the client has the beginning."""
        if self.fault and self.fault.body is not None:
            content = self.fault.body
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {**headers, "Accept-Ranges": "bytes"}
        if start is None:
            return self.answer(200, content, headers)
        first, total = int(start[1]), len(content)
        end = min(int(start[2]) + 1, total) if start[2] else total
        self.answer(206, content[first:end], {**headers, "Content-Range": f"bytes {first}-{end - 1}/{total}"})

    def repo(self, repo_id: str, *, for_content: bool) -> Repo:
        """The model if this request may see it. A gated model shows its listing to all, its files to few."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        allowed = repo_id in self.hub.tokens.get(token, ()) or self.may_write(repo_id)
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not allowed):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and for_content and not allowed:
            raise Refusal(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision."""
        commit = repo.commit(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
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
            raise Refusal(404, "EntryNotFound", "Entry not found")
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
    yield "GET", rf"/api/models/{model}/revision/{at}", Handler.model_info
    yield "GET", rf"/api/models/{model}/tree/{at}", Handler.list_tree
    yield "GET", rf"/api/models/{model}", Handler.model_info
    yield "GET", rf"/cdn/{model}/{at}/(?P<name>.+)", Handler.storage
    yield "GET", rf"/{model}/resolve/{at}/(?P<name>.+)", Handler.resolve


ROUTES = [*_routes(), *UPLOAD_ROUTES]
