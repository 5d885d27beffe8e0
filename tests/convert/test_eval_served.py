"""`eval --served`: a checkpoint through a server on loopback, which answers as vLLM with a real model's numbers."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest

from slideconvert.errors import InputError
from slideconvert.evaluate import compare, served
from slideconvert.evaluate.served import Served
from tests.conftest import Cli
from tests.helpers.completions_server import NAME, Behaviour, expected_of_server, serving
from tests.helpers.demo import TEXT, converted, text_windows

KEY, VARIABLE = "sk-very-secret", "KEY_OF_THE_SERVER"
SEQUENCES, LENGTH = 2, 40
SHORT = ("--text", TEXT, "--sequences", SEQUENCES, "--length", LENGTH)
NATS = 2e-5
"""The server runs the same model with one prompt at a time: the roundings of tests/unit/test_divergence.py twice."""


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine between the command and loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, short_demo: Path) -> Path:
    return converted(short_demo, tmp_path_factory.mktemp("near") / "near", scheme="int8", pattern="2:8")


@pytest.mark.parametrize("top", [None, 5, 300], ids=["default", "few", "many"])
def test_a_served_checkpoint_has_the_numbers_of_its_files(
    cli: Cli, short_demo: Path, near: Path, top: int | None
) -> None:
    """Perplexity as from the files. KL, top and acceptance by the tokens that both lists name: lower, equal and higher
    than with the base's list alone, and the same as soon as the lists are long."""
    how = Behaviour(most=max(20, top or 0))
    words = [*SHORT, *(["--top", top] if top else [])]
    with serving(near, how) as url:
        outcome = cli("eval", short_demo, near, *words, "--served", f"{url}/v1/", "--by-position", "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    _, local, row = told["results"]
    assert told["top"] == (top or 20) and told["notes"] == []
    assert row["ckpt"] == url and row["bytes"] is None and row["tokens"] == local["tokens"]
    for name in ("perplexity", "perplexity_stderr", "ratio", "same_top"):
        assert row[name] == pytest.approx(local[name], rel=NATS), name
    assert row["ratio_stderr"] == pytest.approx(local["ratio_stderr"], rel=1e-2)
    assert row["top_mass"] == local["top_mass"]
    assert row["kl_mean"] < local["kl_mean"] + NATS and row["acceptance"] > local["acceptance"] - NATS
    if top == 300:
        assert row["kl_mean"] == pytest.approx(local["kl_mean"], rel=0.1)
        assert row["acceptance"] == pytest.approx(local["acceptance"], abs=2e-3)
    assert [part["to"] for part in row["by_position"]] == [1, 3, 7, 15, 31, 39]
    prompts = [body for path, body in how.asked if path == "/v1/completions"]
    assert [len(body["prompt"]) for body in prompts] == [LENGTH] * SEQUENCES
    assert all(body["model"] == NAME and body["prompt_logprobs"] == (top or 20) for body in prompts)


def test_numbers_of_a_server_are_those_of_the_twin(cli: Cli, short_demo: Path, near: Path) -> None:
    """At each position: the tokens that base and server both name, one by one, and the rest."""
    tokens = text_windows(LENGTH, SEQUENCES)
    expected = expected_of_server(short_demo, near, tokens, 6)
    with serving(near) as url:
        words = ("--served", url, "--served-model", NAME, "--top", 6, "--json")
        _, row = json.loads(cli("eval", short_demo, *SHORT, *words).out)["results"]
    assert row["ckpt"] == NAME
    assert [row[name] for name in ("kl_mean", "same_top", "acceptance")] == pytest.approx(expected, abs=NATS)


def test_a_kept_base_and_a_server_need_no_model_here(
    cli: Cli, short_demo: Path, near: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ("--keep-base", tmp_path / "kept", "--top", 20)
    assert cli("eval", short_demo, *SHORT, *kept).code == 0
    monkeypatch.setattr(compare, "load_model", lambda *_, **__: pytest.fail("a model ran"))
    with serving(near) as url:
        outcome = cli("eval", short_demo, *SHORT, *kept, "--served", url)
    assert outcome.code == 0 and url in outcome.out


def test_the_key_is_sent_and_never_shown(
    cli: Cli, short_demo: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", short_demo, *SHORT)
    with serving(near, Behaviour(key=KEY)) as url:
        bare = cli(*words, "--served", url)
        assert bare.code == 2 and "wants a key" in bare.err and "--api-key-env" in bare.err
        unset = cli(*words, "--served", url, "--api-key-env", VARIABLE)
        assert unset.code == 2 and "not set" in unset.err
        monkeypatch.setenv(VARIABLE, "sk-another")
        wrong = cli(*words, "--served", url, "--api-key-env", VARIABLE)
        assert wrong.code == 2 and "refuses the API key" in wrong.err
        monkeypatch.setenv(VARIABLE, KEY)
        right = cli(*words, "--served", url, "--api-key-env", VARIABLE)
        assert right.code == 0, right.err
    with serving(near, Behaviour(status=400, message=f"bad request with {KEY}")) as url:
        echoed = cli(*words, "--served", url, "--api-key-env", VARIABLE)
        assert echoed.code == 2 and "bad request with …" in echoed.err
        monkeypatch.setenv(VARIABLE, "sk-with\nnewline")
        odd = cli(*words, "--served", url, "--api-key-env", VARIABLE)
        assert odd.code == 2 and "no key has" in odd.err
    for outcome in (bare, unset, wrong, right, echoed, odd):
        assert "sk-" not in outcome.out + outcome.err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="not a URL"):
        Served(url)


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(InputError, match="a URL with a password") as refused:
        Served("http://me:sk-very-secret@127.0.0.1")
    assert "sk-" not in str(refused.value)


def failing(cli: Cli, base: Path, near: Path, how: Behaviour, *words: object) -> tuple[int, str]:
    with serving(near, how) as url:
        outcome = cli("eval", base, *SHORT, "--served", url, *words)
    assert outcome.out == "" and outcome.err.count("error: ") == 1
    return outcome.code, outcome.err


def drop(answer: dict[str, Any]) -> None:
    del answer["choices"][0]["prompt_logprobs"]


def short(answer: dict[str, Any]) -> None:
    answer["choices"][0]["prompt_logprobs"].pop()


def other_token(answer: dict[str, Any]) -> None:
    row = answer["choices"][0]["prompt_logprobs"][3]
    row.pop(next(iter(row)))  # the one that came stands first


def no_number(answer: dict[str, Any]) -> None:
    next(iter(answer["choices"][0]["prompt_logprobs"][3].values()))["logprob"] = "much"


def positive(answer: dict[str, Any]) -> None:
    next(iter(answer["choices"][0]["prompt_logprobs"][3].values()))["logprob"] = 0.5


def impossible(answer: dict[str, Any]) -> None:
    next(iter(answer["choices"][0]["prompt_logprobs"][3].values()))["logprob"] = -9999.0


@pytest.mark.parametrize(
    ("how", "words", "code", "said"),
    [
        (Behaviour(), ("--served-model", "other"), 2, f"no model 'other' (--served-model is one of {NAME})"),
        (Behaviour(most=5), (), 2, "--max-logprobs 20, or lower --top"),
        (Behaviour(length=LENGTH), (), 2, f"takes {LENGTH} tokens (max_model_len)"),
        (Behaviour(tokenize=lambda tokens: [*tokens[:9], 0, *tokens[9:]]), (), 2, "another tokenizer"),
        (Behaviour(spoil=drop), (), 2, "without prompt_logprobs"),
        (Behaviour(spoil=short), (), 1, f"prompt_logprobs of {LENGTH} tokens were asked for"),
        (Behaviour(spoil=other_token), (), 1, "position 3 does not tell the token that came"),
        (Behaviour(spoil=no_number), (), 1, "no {token: {logprob}}"),
        (Behaviour(spoil=positive), (), 1, "not a number of at most 0"),
        (Behaviour(spoil=impossible), (), 1, "not finite in sequence 0"),
        (Behaviour(raw=b"<html>"), (), 2, "without prompt_logprobs"),
        (Behaviour(raw=b"[" * 100_000), (), 2, "without prompt_logprobs"),
        (Behaviour(raw=b" " * 4_000_000), (), 1, "answers with more than"),
        (Behaviour(status=500), (), 1, "status 500: the engine has died"),
    ],
    ids=lambda value: None,
)
def test_what_a_server_may_lack_or_get_wrong_is_named(
    cli: Cli, short_demo: Path, near: Path, how: Behaviour, words: tuple[object, ...], code: int, said: str
) -> None:
    found = failing(cli, short_demo, near, how, *words)
    assert found[0] == code and said in found[1], found


def test_a_server_with_fewer_words_is_refused(cli: Cli, short_demo: Path, near: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    small = shutil.copytree(short_demo, tmp_path / "small")
    tensors = load_file(small / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:1000].clone()
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    code, said = failing(cli, short_demo, small, Behaviour())
    assert code == 2 and "out of vocabulary" in said and "another tokenizer" in said


def test_a_server_without_tokenize_is_measured_with_a_note(cli: Cli, short_demo: Path, near: Path) -> None:
    with serving(near, Behaviour(tokenize=None)) as url:
        outcome = cli("eval", short_demo, *SHORT, "--served", url)
    assert outcome.code == 0 and "its tokenizer was not compared" in outcome.out


def test_nobody_answers(cli: Cli, short_demo: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        outcome = cli("eval", short_demo, *SHORT, "--served", url)
    assert outcome.code == 2 and "cannot be reached" in outcome.err and "vllm serve" in outcome.err


def test_a_server_that_does_not_answer_in_time(
    cli: Cli, short_demo: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "ANSWER_SECONDS", 0.5)
    code, said = failing(cli, short_demo, near, Behaviour(stall=True))
    assert code == 1 and "does not answer" in said and "ReadTimeout" in said


def test_a_server_that_breaks_off(cli: Cli, short_demo: Path) -> None:
    """It hangs up in the middle of every answer."""
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        outcome = cli("eval", short_demo, *SHORT, "--served", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert outcome.code == 1 and "broke off" in outcome.err


def test_a_loss_is_the_logarithm_of_what_the_server_says() -> None:
    losses, top = served._tensors([{4: math.log(0.5), 2: math.log(0.25)}, {2: math.log(0.1)}], [2, 2])
    assert losses.tolist() == pytest.approx([math.log(4), math.log(10)])
    assert top.tokens.tolist() == [[4, 2], [2, -1]]
    assert top.log_rest.exp().tolist() == pytest.approx([0.25, 0.9])
