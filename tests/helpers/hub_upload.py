"""How tests/helpers/hub_server.py takes files: the routes of the Hub's HTTP API that a push needs.

Large files go to the storage host ("localhost"), whose addresses are signed and which must not be sent the token; they
lie in `Repo.storage` until a commit names them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from tests.helpers.hub_repo import Fault, Refusal, Repo, is_large, sha256

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

SIGNATURE = "X-Amz-Signature=s1gned"
GIT_ATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
"""What a new repository holds."""


class Uploads:
    """Mixed into the request handler, which has what stands here without a body."""

    hub: HubServer
    command: str
    headers: Any
    rfile: Any
    fault: Fault | None
    close_connection: bool
    body: bytes
    answer: Callable[[int, bytes, Mapping[str, str]], None]
    answer_json: Callable[[Any], None]
    repo: Callable[..., Repo]
    tree: Callable[[Repo, str], tuple[str, dict[str, bytes]]]

    def take_body(self) -> bytes:
        """The body of the request. A fault of a PUT breaks it off."""
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.fault
        if self.command == "PUT" and fault and fault.drop_after is not None:
            self.rfile.read(fault.drop_after)
            if fault.stall:
                self.hub.stalled.set()
                self.hub.closing.wait()
            raise ConnectionError
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def may_write(self, repo_id: str) -> bool:
        account = self.hub.accounts.get(self.token)
        return account is not None and account.may_write(repo_id.split("/")[0])

    def to_write(self, repo_id: str) -> Repo:
        """The model if this request may write to it."""
        repo = self.repo(repo_id, for_content=False)
        if not self.may_write(repo_id):
            raise Refusal(403, message="You don't have the rights to write to this repository")
        return repo

    def whoami(self, _: object) -> None:
        if self.token not in self.hub.accounts:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        self.answer_json(self.hub.accounts[self.token].whoami())

    def auth_check(self, _: object, id: str) -> None:
        self.to_write(id)
        self.answer_json({})

    def create_repo(self, _: object) -> None:
        said = json.loads(self.body)
        repo_id = f"{said['organization']}/{said['name']}"
        if not self.may_write(repo_id):
            raise Refusal(403, message="You don't have the rights to create a model under this namespace")
        if repo_id in self.hub.repos:
            return self.answer(409, b'{"url": "' + self.hub.url.encode() + b'"}', {})
        self.hub.repos[repo_id] = Repo(is_large, gated=False, private=said.get("visibility") == "private")
        self.hub.repos[repo_id].add("main", GIT_ATTRIBUTES)
        self.answer_json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def create_branch(self, _: object, id: str, revision: str) -> None:
        repo = self.to_write(id)
        if revision in repo.branches:
            raise Refusal(409, message="Reference already exists")
        repo.branches[revision] = repo.branches["main"]
        self.answer_json({})

    def preupload(self, _: object, id: str, revision: str) -> None:
        repo = self.to_write(id)
        _, files = self.tree(repo, revision)
        ignored = files.get(".gitignore", b"").decode().split()
        asked = json.loads(self.body)["files"]
        assert all(len(base64.b64decode(file["sample"])) <= 512 for file in asked)
        told = [
            {
                "path": (name := file["path"]),
                "uploadMode": "lfs" if repo.lfs(name) else "regular",
                "shouldIgnore": name in ignored,
                "oid": repo.etag(name, files[name]) if name in files else None,
            }
            for file in asked
        ]
        self.answer_json({"files": told})

    def lfs_batch(self, _: object, id: str) -> None:
        repo = self.to_write(id)
        objects = []
        for file in json.loads(self.body)["objects"]:
            oid, size = file["oid"], file["size"]
            stored = {"oid": oid, "size": size}
            if repo.stored(oid) is None:
                storage, parts = f"http://localhost:{self.hub.port}/lfs/{id}/{oid}", self.hub.part_size
                upload: dict[str, Any] = {"href": f"{storage}?{SIGNATURE}"}
                if parts:
                    count = -(-size // parts)
                    header = {f"{number + 1:05}": f"{storage}/{number + 1}?{SIGNATURE}" for number in range(count)}
                    upload = {"href": f"{self.hub.url}/complete/{id}", "header": {**header, "chunk_size": str(parts)}}
                stored["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{id}.git/info/lfs/verify"}}
            objects.append(stored)
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, query: Mapping[str, list[str]], id: str, oid: str, part: str = "") -> None:
        assert not self.token and query["X-Amz-Signature"], "the storage host must not be sent the token"
        if not part and sha256(self.body) != oid:
            raise Refusal(400, message="BadDigest")
        self.hub.repos[id].storage[oid + part] = self.body
        self.answer(200, b"", {"ETag": f'"{sha256(self.body)[:8]}"'})

    def lfs_complete(self, _: object, id: str) -> None:
        said, storage = json.loads(self.body), self.hub.repos[id].storage
        parts = [storage.pop(f"{said['oid']}{part['partNumber']}") for part in said["parts"]]
        assert [part["etag"] for part in said["parts"]] == [f'"{sha256(part)[:8]}"' for part in parts]
        storage[said["oid"]] = b"".join(parts)
        self.answer_json({})

    def lfs_verify(self, _: object, id: str) -> None:
        said = json.loads(self.body)
        stored = self.to_write(id).storage.get(said["oid"])
        if stored is None or sha256(stored) != said["oid"] or len(stored) != said["size"]:
            raise Refusal(400, message="the object is not what it should be")
        self.answer_json({})

    def validate_yaml(self, _: object) -> None:
        front = json.loads(self.body)["content"].split("---\n")[1]
        if not isinstance(yaml.safe_load(front).get("license", "mit"), str):
            return self.answer(400, json.dumps({"errors": [{"message": '"license" must be a string'}]}).encode(), {})
        self.answer_json({"errors": [], "warnings": []})

    def commit(self, _: object, id: str, revision: str) -> None:
        repo = self.to_write(id)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        parent, files = self.tree(repo, revision)
        if header.get("parentCommit", parent) != parent:
            raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for line in lines[1:]:
            path, value = line["value"]["path"], line["value"]
            if line["key"] == "deletedFile":
                del files[path]
            elif line["key"] == "file":
                assert not repo.lfs(path)
                files[path] = base64.b64decode(value["content"])
            else:
                stored = repo.stored(value["oid"])
                if stored is None or not repo.lfs(path):
                    raise Refusal(400, message=f"LFS object {value['oid']} of {path} does not exist")
                files[path] = stored
        oid = repo.add(revision, files)
        repo.messages[oid] = header["summary"]
        self.answer_json({"commitUrl": f"{self.hub.url}/{id}/commit/{oid}", "commitOid": oid, "success": True})


_MODEL = r"(?P<id>[^/]+/[^/]+?)"
_AT = r"(?P<revision>[^/]+)"
UPLOAD_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", Uploads.whoami),
    ("GET", rf"/api/models/{_MODEL}/auth-check/write", Uploads.auth_check),
    ("POST", r"/api/repos/create", Uploads.create_repo),
    ("POST", r"/api/validate-yaml", Uploads.validate_yaml),
    ("POST", rf"/api/models/{_MODEL}/branch/{_AT}", Uploads.create_branch),
    ("POST", rf"/api/models/{_MODEL}/preupload/{_AT}", Uploads.preupload),
    ("POST", rf"/api/models/{_MODEL}/commit/{_AT}", Uploads.commit),
    ("POST", rf"/{_MODEL}\.git/info/lfs/objects/batch", Uploads.lfs_batch),
    ("POST", rf"/{_MODEL}\.git/info/lfs/verify", Uploads.lfs_verify),
    ("POST", rf"/complete/{_MODEL}", Uploads.lfs_complete),
    ("PUT", rf"/lfs/{_MODEL}/(?P<oid>[0-9a-f]{{64}})(/(?P<part>\d+))?", Uploads.lfs_put),
]
