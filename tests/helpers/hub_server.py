"""A Hugging Face Hub on the loopback: as much of its HTTP API as huggingface_hub needs to fetch and to push a model.

    with HubServer() as hub:
        commit = hub.add_repo("org/model", {"config.json": b"{}", "model.safetensors": weights})
        hub.faults.append(Fault("model.safetensors", drop_after=1000))
        ...                                  # HF_ENDPOINT=hub.url
        assert [r.range for r in hub.requests_for("model.safetensors")] == [None, "bytes=1000-"]

As on the real Hub, a large file ("LFS") is answered with a redirect to a storage host, which must not be sent the
token: here the same server under its other name, localhost instead of 127.0.0.1. Nothing mentions Xet, so
huggingface_hub transfers by plain HTTP. The requests are answered in hub_http.py and, for the way up, hub_upload.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Mapping
from http.server import ThreadingHTTPServer
from typing import Any

from tests.helpers.hub_http import Handler
from tests.helpers.hub_repo import Account, Fault, Repo, Request, is_large


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *where: Any) -> None:
        """Clients that leave early are meant to; anything else is a defect of the server and is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*where)


class HubServer:
    """The server; a context manager. url: its address. requests: all that came in. faults: what to do wrong next.

    tokens: known token -> ids of the private and gated models that it may read. accounts: token -> whose it is, for
    those that may write. stalled: set by a Fault(stall=True). part_size: of large files, sent in parts of so many
    bytes; None: whole.
    watch: is told of every request before it is answered.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.accounts: dict[str, Account] = {}
        self.part_size: int | None = None
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.watch: Callable[[Request], object] = lambda request: None
        self.stalled = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._http = _Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
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
        large = lfs if callable(lfs) else (lambda name: name in lfs) if lfs is not None else is_large
        repo = self.repos.setdefault(repo_id, Repo(large, gated, private))
        return repo.add(branch, files)

    def add_account(self, token: str, account: Account) -> None:
        """Let a token be known."""
        self.tokens.setdefault(token, set())
        self.accounts[token] = account

    def requests_for(self, name: str, method: str = "GET") -> list[Request]:
        """The requests for a file, oldest first, without those that only led to the storage host."""
        paths = [r for r in self.requests if r.method == method and r.path.endswith(f"/{name}")]
        stored = [r for r in paths if r.path.startswith("/cdn/")]
        return stored or paths

    def record(self, request: Request) -> Fault | None:
        """Note a request; the fault that is to spoil it, if one is left."""
        with self._lock:
            self.requests.append(request)
            self.watch(request)
            for fault in self.faults:
                if fault.times > 0 and fault.method == request.method and request.path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None
