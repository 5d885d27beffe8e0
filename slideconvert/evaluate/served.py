"""Measuring a checkpoint through a running server: the log probabilities of prompts from vLLM's completions API.

Each sequence is one prompt of token ids; vLLM answers with its k most likely tokens at each position and the token that
came (`prompt_logprobs`, an extension of OpenAI's API). So the numbers are those of the kernels and number formats that
serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from ..checkpoint.json_text import parse_json
from ..errors import InputError, SlideConvertError, one_line
from ..progress import Progress
from .divergence import Top, divergence_of_tops
from .kept_base import KeptBase

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0
"""Longest wait for bytes of an answer: a prompt may stand behind those of other clients."""
ANSWER_BYTES, ENTRY_BYTES = 1 << 20, 1 << 10
"""Most bytes of an answer, and of it for each reported token: far more than vLLM sends."""
SAMPLE = 256
"""Tokens of the text that the server's tokenizer is tried on."""
IMPOSSIBLE = -9999.0
"""What vLLM sends for a log probability of -inf, which JSON does not have."""
LIMIT_WORDS = "greater than max allowed"
"""Of vLLM's refusal of more log probabilities than its --max-logprobs."""


@dataclass(frozen=True)
class Served:
    """A checkpoint behind a server.

    url: of the server, with or without /v1. model: its name there, None for the first one. key: sent as bearer token,
    never shown.
    """

    url: str
    model: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"--served {one_line(self.url)}: not a URL ({error})", hint="http://HOST:8000") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError(f"--served {one_line(self.url)}: not a URL of a server", hint="http://HOST:8000")
        if parsed.userinfo:
            raise InputError("--served: a URL with a password", hint="omit it, and name a key with --api-key-env")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and self.key.strip()):
            raise InputError("the API key is empty or has characters that no key has", hint="look at --api-key-env")

    @property
    def root(self) -> str:
        """The URL without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def name(self) -> str:
        """As a row is called."""
        return self.model or self.root


def measure_served(
    served: Served, tokens: Tensor, tokenizer: Any, kept: KeptBase, progress: Progress
) -> tuple[Tensor, list[str]]:
    """tokens [sequences, length] int64, made by the base's tokenizer -> losses and divergence from the base,
    [sequences, length - 1, 4] float64, and notes.

    As many tokens are asked for at each position as the base's file keeps. InputError for a server that cannot be
    reached, refuses the key, does not have the model, has another tokenizer, or reports fewer tokens or takes shorter
    prompts; SlideConvertError for one that fails or answers with something else.
    """
    count, length = tokens.shape
    with _Client(served) as client:
        model = client.model(length)
        notes = client.check_tokenizer(model, tokens, tokenizer)
        found = []
        for number in range(count):
            progress(served.name, number, count)
            losses, top = client.prompt(model, tokens[number].tolist(), kept.origin.top)
            each = length - 1
            numbers = divergence_of_tops(kept.top(number * each, (number + 1) * each), top)
            found.append(torch.cat([losses[:, None], numbers], -1))
            if not torch.isfinite(found[-1]).all():
                raise SlideConvertError(
                    f"{served.name}: the loss or the divergence is not finite in sequence {number}",
                    hint="the model excludes tokens that came or that the base expects; is it the right one?",
                )
        progress(served.name, count, count)
    return torch.stack(found), notes


class _Client:
    """A connection to the server."""

    def __init__(self, served: Served) -> None:
        headers = {"Authorization": f"Bearer {served.key}"} if served.key else {}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        self._served, self._http = served, httpx.Client(headers=headers, timeout=timeout)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self, length: int) -> str:
        """The name of the model, after a look at what the server has and how long its prompts may be."""
        status, answer = self._ask("GET", "/v1/models")
        cards = answer.get("data") if status == 200 else None
        if not isinstance(cards, list) or not cards or not all(isinstance(card, dict) for card in cards):
            raise InputError(
                f"{self._served.root}/v1/models names no models (status {status}{self._said(answer)})",
                hint="is it an OpenAI-compatible server? vllm serve CKPT",
            )
        known = {str(card.get("id")): card for card in cards}
        name = self._served.model or next(iter(known))
        if name not in known:
            names = one_line(", ".join(known))[:300]
            raise InputError(f"{self._served.root} has no model '{name}'", hint=f"--served-model is one of {names}")
        most = known[name].get("max_model_len")
        if isinstance(most, int) and most < length + 1:
            raise InputError(
                f"{self._served.root}: {name} takes {most} tokens (max_model_len), a sequence and one more are "
                f"{length + 1}",
                hint=f"--length {most - 1}, or start the server with --max-model-len {length + 1}",
            )
        return name

    def check_tokenizer(self, model: str, tokens: Tensor, tokenizer: Any) -> list[str]:
        """Notes, if there is no way to check. InputError if the server makes other tokens of the text's beginning."""
        sample = tokenizer.decode(tokens[0, :SAMPLE], skip_special_tokens=True)
        ours = tokenizer(sample, add_special_tokens=False)["input_ids"]
        asked = {"model": model, "prompt": sample, "add_special_tokens": False}
        status, answer = self._ask("POST", "/tokenize", asked)
        theirs = answer.get("tokens") if status == 200 else None
        if not isinstance(theirs, list):
            return [f"{self._served.root} has no /tokenize: its tokenizer was not compared with the base's"]
        if theirs != ours:
            differing = next(
                (place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
                min(len(ours), len(theirs)),
            )
            raise InputError(
                f"{self._served.root}: {model} has another tokenizer than the base: token {differing} of the text is "
                f"{theirs[differing : differing + 1]}, not {ours[differing : differing + 1]}",
                hint="compare it with the model that it was made of, or with its own checkpoint",
            )
        return []

    def prompt(self, model: str, tokens: list[int], k: int) -> tuple[Tensor, Top]:
        """Losses [n] and distributions of the n = len(tokens) - 1 predicted tokens, float64."""
        asked = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": k}
        most = ANSWER_BYTES + ENTRY_BYTES * len(tokens) * (k + 1)
        status, answer = self._ask("POST", "/v1/completions", asked, most)
        if status != 200:
            raise self._refusal(status, self._said(answer), k)
        try:
            entries = answer["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            entries = None
        if entries is None:
            raise InputError(
                f"{self._served.root} answers without prompt_logprobs", hint="only vLLM's server is known to have them"
            )
        if not isinstance(entries, list) or len(entries) != len(tokens):
            raise self._odd(f"prompt_logprobs of {len(tokens)} tokens were asked for")
        rows = [self._row(entry) for entry in entries[1:]]
        if missing := [place for place, row in enumerate(rows, 1) if tokens[place] not in row]:
            raise self._odd(f"position {missing[0]} does not tell the token that came ({tokens[missing[0]]})")
        return _tensors(rows, tokens[1:])

    def _row(self, entry: Any) -> dict[int, float]:
        """Log probabilities by token at one position."""
        try:
            row = {int(token): float(about["logprob"]) for token, about in entry.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._odd("an entry of prompt_logprobs is no {token: {logprob}}") from error
        if not row or not all(value <= 1e-3 for value in row.values()):
            raise self._odd("a log probability is not a number of at most 0")
        return {token: value if value > IMPOSSIBLE else -torch.inf for token, value in row.items()}

    def _refusal(self, status: int, said: str, k: int) -> SlideConvertError:
        where = f"{self._served.root} refuses a prompt (status {status}{said})"
        if LIMIT_WORDS in said or "max_logprobs" in said or "max-logprobs" in said:
            return InputError(where, hint=f"start the server with --max-logprobs {k}, or lower --top")
        if "vocab" in said:
            return InputError(where, hint="it has another tokenizer than the base")
        if 400 <= status < 500:
            return InputError(where, hint="the log of the server says more")
        return SlideConvertError(where, hint="the log of the server says more")

    def _odd(self, what: str) -> SlideConvertError:
        return SlideConvertError(f"{self._served.root}: {what}", hint="is it vLLM's server?")

    def _said(self, answer: Mapping[str, Any]) -> str:
        """The reason that an answer gives, in any of the forms in which servers write it, without the key."""
        error = answer.get("error", answer)
        reason = error.get("message", error.get("detail", "")) if isinstance(error, dict) else error
        text = one_line(str(reason))
        if self._served.key:
            text = text.replace(self._served.key, "…")
        return f": {text[:300]}" if text else ""

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, most: int = ANSWER_BYTES
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer of at most `most` bytes; {} for another answer than an object."""
        url = self._served.root + path
        with self._network_errors(), self._http.stream(method, url, json=body) as answer:
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > most:
                    raise self._odd(f"{path} answers with more than {most} bytes")
        if answer.status_code in (401, 403):
            raise InputError(
                f"{self._served.root} refuses the API key" if self._served.key else f"{self._served.root} wants a key",
                hint="--api-key-env NAME, where the environment variable NAME holds the key",
            )
        try:
            found = parse_json(data.decode())
        except ValueError:
            found = {}
        return answer.status_code, found if isinstance(found, dict) else {}

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise InputError(
                f"{self._served.root} cannot be reached: {one_line(str(error))}", hint="is it running? vllm serve CKPT"
            ) from error
        except httpx.TimeoutException as error:
            raise SlideConvertError(
                f"{self._served.root} does not answer ({type(error).__name__} after {ANSWER_SECONDS:.0f} s, "
                f"{CONNECT_SECONDS:.0f} s to connect)",
                hint="its log says more; shorter sequences take less: --length",
            ) from error
        except httpx.HTTPError as error:
            raise SlideConvertError(
                f"{self._served.root} broke off: {one_line(str(error)) or type(error).__name__}",
                hint="its log says more",
            ) from error


def _tensors(rows: list[dict[int, float]], wanted: list[int]) -> tuple[Tensor, Top]:
    """Losses [n] of the tokens that came, and what is known of each position, filled up with token -1."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), -1)
    log_q = torch.full((len(rows), width), -torch.inf, dtype=torch.float64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(list(row))
        log_q[place, : len(row)] = torch.tensor(list(row.values()), dtype=torch.float64)
    losses = torch.tensor([-row[token] for row, token in zip(rows, wanted, strict=True)], dtype=torch.float64)
    return losses, Top(tokens, log_q, torch.log1p(-log_q.exp().sum(-1).clamp(max=1.0)))
