"""An OpenAI-compatible server on loopback that answers as vLLM does, with log probabilities of a real model.

Shapes and texts are those of vLLM 0.32's `vllm serve`: /v1/models with max_model_len, /tokenize, and /v1/completions
with prompt_logprobs, one object of {token: {logprob, rank, decoded_token}} for each token of the prompt, and null for
the first.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.load import load_model, load_tokenizer
from tests.twins import scores

NAME = "served-checkpoint"


def expected_of_server(base: Path, model: Path, tokens: torch.Tensor, k: int) -> list[float]:
    """The means of KL divergence, same top token and acceptance over tokens [sequences, length], if a server tells the
    k most likely tokens of `model` and as many are kept of `base`: by the twin, from whole logits."""
    with torch.no_grad():
        p, q = (load_model(Checkpoint.open(path))(tokens).logits[:, :-1].flatten(0, 1) for path in (base, model))
    came = tokens[:, 1:].flatten().tolist()
    rows = [scores.numbers_of_lists(*three, k) for three in zip(p.numpy(), q.numpy(), came, strict=True)]
    return [float(mean) for mean in np.mean(rows, 0)]


@dataclass
class Behaviour:
    """How the server deviates.

    key: that it wants. most: its --max-logprobs. length: its max_model_len. spoil: changes the answer of
    /v1/completions. status, message: of every answer but that of /v1/models. stall: waits for `closing` instead of
    answering a prompt. raw: bytes instead of the answer to a prompt. tokenize: changes the answer of /tokenize; None
    for a server without it.
    """

    key: str | None = None
    most: int = 20
    length: int = 4096
    spoil: Callable[[dict[str, Any]], Any] = lambda answer: None
    status: int = 200
    message: str = "the engine has died"
    stall: bool = False
    raw: bytes | None = None
    tokenize: Callable[[list[int]], list[int]] | None = lambda tokens: tokens
    closing: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Refused(Exception):
    """status and message of an answer that is an error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour
    model: Any
    tokenizer: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.respond({})

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: dict[str, Any]) -> None:
        how = self.behaviour
        how.asked.append((self.path, body))
        try:
            if how.key and self.headers.get("Authorization") != f"Bearer {how.key}":
                given = self.headers.get("Authorization", "")
                self.answer(401, {"error": f"Unauthorized: {given}"})
            elif self.path == "/v1/models":
                card = {"id": NAME, "object": "model", "owned_by": "vllm", "max_model_len": how.length}
                self.answer(200, {"object": "list", "data": [card]})
            elif how.status != 200:
                self.answer(how.status, {"error": {"message": how.message, "code": how.status}})
            elif self.path == "/tokenize" and how.tokenize:
                tokens = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
                self.answer(200, {"count": len(tokens), "max_model_len": how.length, "tokens": how.tokenize(tokens)})
            elif self.path == "/v1/completions":
                self.complete(body)
            else:
                self.answer(404, {"detail": "Not Found"})
        except Refused as refused:
            status, message = refused.args
            error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
            self.answer(status, {"error": error})

    def complete(self, body: dict[str, Any]) -> None:
        how = self.behaviour
        prompt, k = body["prompt"], body["prompt_logprobs"]
        if how.stall:
            how.closing.wait()
            self.close_connection = True
            return
        if k > how.most:
            raise Refused(400, f"Requested prompt logprobs of {k}, which is greater than max allowed: {how.most}")
        if max(prompt) >= self.model.config.vocab_size:
            raise Refused(400, f"Token id {max(prompt)} is out of vocabulary")
        assert len(prompt) + body["max_tokens"] <= how.length
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": self.logprobs(prompt, k)}
        answer = {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}
        how.spoil(answer)
        self.answer(200, answer, how.raw)

    def logprobs(self, prompt: list[int], k: int) -> list[Any]:
        with torch.no_grad():
            values = self.model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
        entries: list[Any] = [None]
        for came, row in zip(prompt[1:], values, strict=True):
            tokens = dict.fromkeys([came, *row.topk(k).indices.tolist()])
            entries.append({str(token): self.entry(token, row) for token in tokens})
        return entries

    def entry(self, token: int, row: torch.Tensor) -> dict[str, Any]:
        value = float(row[token])
        about = {"rank": int((row > row[token]).sum()) + 1, "decoded_token": self.tokenizer.decode([token])}
        return {"logprob": max(value, -9999.0), **about}

    def answer(self, status: int, body: dict[str, Any], raw: bytes | None = None) -> None:
        data = json.dumps(body).encode() if raw is None else raw
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True  # the client has gone: nobody to tell


@contextmanager
def serving(path: Path, behaviour: Behaviour | None = None) -> Iterator[str]:
    """The URL of a server with a checkpoint, while the block runs."""
    how, checkpoint = behaviour or Behaviour(), Checkpoint.open(path)
    given = {"behaviour": how, "model": load_model(checkpoint), "tokenizer": load_tokenizer(checkpoint)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), given))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        how.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
