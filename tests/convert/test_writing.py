"""generate and chat: what is written with which tokens before it, how it is drawn, and what a terminal is shown."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import slideconvert
from slideconvert import ChatOptions, GenerateOptions
from slideconvert.api.writing import open_writer, written
from slideconvert.cli.talk import harmless
from slideconvert.errors import InputError
from slideconvert.evaluate.continuation import _Stream
from slideconvert.progress import silent
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import weights, write_tokenizer
from tests.helpers.chat import TEMPLATE, write_chat_model
from tests.helpers.demo import DEMO

USER, ASSISTANT, SYSTEM = 3, 4, 5
"""The tokens of w1, w2 and w3, with which the template names who speaks."""
MOST = 6

Typed = Callable[[str], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model that is lively enough for answers that depend on the question."""
    folder = write_chat_model(tmp_path_factory.mktemp("writing") / "model")
    pico.write(folder, weights())
    write_tokenizer(folder)
    return folder


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Puts text into standard input, as a pipe does."""

    def put(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return put


class Twin:
    """Greedy text of a folder's model: one token after the other, each with a whole pass."""

    def __init__(self, folder: Path) -> None:
        self.model = slideconvert.load_model(folder)

    def after(self, tokens: list[int], most: int = MOST) -> list[int]:
        """The next tokens, up to the end token."""
        found = list(tokens)
        with torch.inference_mode():
            while len(found) < len(tokens) + most and (len(found) == len(tokens) or found[-1] != 1):
                found.append(int(self.model(torch.tensor([found])).logits[0, -1].argmax()))
        return found[len(tokens) :]


def turn(speaker: int, *words: int) -> list[int]:
    """The tokens of a message, words by their numbers."""
    return [0, speaker, *(word + 2 for word in words), 1]


def said(tokens: list[int]) -> str:
    return " ".join(f"w{token - 2}" for token in tokens if token > 1)


def test_an_answer_follows_the_template(cli: Cli, model: Path) -> None:
    before = [*turn(SYSTEM, 9), *turn(USER, 7, 8), 0, ASSISTANT]
    expected = said(Twin(model).after(before))
    options = GenerateOptions(chat=True, system="w9", max_new_tokens=MOST)
    assert slideconvert.generate(model, "w7 w8", options) == expected
    words = ("--prompt", "w7 w8", "--chat", "--max-new-tokens", MOST)
    shown = cli("generate", model, *words, "--system", "w9")
    assert shown.out == f"{expected}\n"
    other = cli("generate", model, *words)
    assert other.code == 0 and other.out != shown.out  # the system message has an effect
    assert json.loads(cli("generate", model, *words, "--json").out)["text"] == other.out.strip()


def test_a_conversation_remembers_until_it_is_reset(cli: Cli, typed: Typed, model: Path) -> None:
    twin = Twin(model)
    first = twin.after([*turn(SYSTEM, 9), *turn(USER, 7), 0, ASSISTANT])
    before = [*turn(SYSTEM, 9), *turn(USER, 7), 0, ASSISTANT, *[token for token in first if token > 1], 1]
    second = twin.after([*before, *turn(USER, 8), 0, ASSISTANT])
    anew = twin.after([*turn(SYSTEM, 9), *turn(USER, 8), 0, ASSISTANT])
    assert second != anew
    typed("w7\n\n w8 \n/reset\nw8\n/exit\nw7\n")
    done = cli("chat", model, "--system", "w9", "--max-new-tokens", MOST, "-q")
    assert done.code == 0 and done.out.splitlines() == [said(first), said(second), said(anew)]
    typed("w7")  # without a line feed, and the end of the file ends it
    assert cli("chat", model, "--system", "w9", "--max-new-tokens", MOST).out == f"{said(first)}\n"

    talk = slideconvert.chat(model, ChatOptions(system="w9", max_new_tokens=MOST))
    pieces: list[str] = []
    assert [talk.say("w7", pieces.append), talk.say("w8")] == [said(first), said(second)]
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert "".join(pieces) == said(first) and len(pieces) > 1
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "w9"}]


def test_somebody_types(cli: Cli, typed: Typed, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """A prompt, errors that end nothing, and Ctrl-D."""
    lines = iter(["w7 " * 140, "w7"])

    def ask(prompt: str) -> str:
        assert prompt == "> "
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    typed("")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    done = cli("chat", model, "--max-new-tokens", MOST)
    told, error = done.err.strip().splitlines()
    assert done.code == 0 and "/reset" in told and "145 tokens, but the model has 128 positions" in error
    assert done.out == said(Twin(model).after([*turn(USER, 7), 0, ASSISTANT])) + "\n\n"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, as in a terminal: a process that a script has started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def struck(monkeypatch: pytest.MonkeyPatch, interruptible: None) -> Callable[[signal.Signals], None]:
    """Sends this process a signal when the third piece of the next text is shown."""

    def send(number: signal.Signals) -> None:
        shown: list[str] = []

        def show(text: str) -> str:
            shown.append(text)
            if len(shown) == 3:
                os.kill(os.getpid(), number)
            return harmless(text)

        monkeypatch.setattr("slideconvert.cli.talk.harmless", show)

    return send


def test_an_interrupt_stops_an_answer_and_then_the_conversation(
    cli: Cli, typed: Typed, struck: Callable[[signal.Signals], None], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    """Ctrl-C. The next answer knows nothing of the one that was stopped."""
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if len(asked) > 3:
            raise EOFError  # nothing has ended the conversation
        return "w7"

    typed("")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    struck(signal.SIGINT)
    done = cli("chat", model, "--max-new-tokens", MOST, "-q")
    answer = said(Twin(model).after([*turn(USER, 7), 0, ASSISTANT]))
    assert len(asked) == 3 and (done.code, done.err) == (130, "")
    assert done.out == f"{' '.join(answer.split()[:2])}\n{answer}\n\n"


def test_a_termination_ends_a_conversation_in_the_middle_of_an_answer(
    cli: Cli, typed: Typed, struck: Callable[[signal.Signals], None], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    asked: list[str] = []
    typed("")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "w7")
    struck(signal.SIGTERM)
    done = cli("chat", model, "--max-new-tokens", MOST, "-q")
    assert (done.code, done.err, len(asked)) == (130, "", 1)


@pytest.mark.parametrize("command", [("chat",), ("generate", "--prompt", "w7")], ids=["chat", "generate"])
def test_an_interrupt_ends_what_nobody_can_go_on_with(
    cli: Cli, typed: Typed, struck: Callable[[signal.Signals], None], model: Path, command: tuple[str, ...]
) -> None:
    """A conversation through a pipe, and a text: there is nothing to resume, and nothing says so."""
    typed("w7\nw8\n")
    struck(signal.SIGINT)
    done = cli(*command, model, "--max-new-tokens", MOST, "-q")
    assert (done.code, done.err) == (130, "") and len(done.out.splitlines()) == 1


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_model_without_a_template_cannot_chat(cli: Cli, typed: Typed, tmp_path: Path, command: str) -> None:
    typed("w7\n")
    folder = write_chat_model(tmp_path / "model", template=None)
    words = {"generate": ("--chat", "--prompt", "w7"), "chat": ()}[command]
    refused = cli(command, folder, *words)
    assert refused.code == 2 and not refused.out
    assert "model has no chat template" in refused.err and "chat_template.jinja" in refused.err


def test_a_template_that_refuses_a_turn_says_so(cli: Cli, typed: Typed, tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "model", template=TEMPLATE.replace(", 'system')", ")"))
    typed("w7\n")
    refused = cli("chat", folder, "--system", "w9")
    assert refused.code == 2 and "model refuses it (no systems)" in refused.err and not refused.out


def test_a_seed_repeats_what_is_drawn(model: Path) -> None:
    def drawn(**words: float | int | None) -> str:
        return slideconvert.generate(model, "w7", GenerateOptions(max_new_tokens=MOST, **words))  # type: ignore[arg-type]

    greedy = drawn()
    assert drawn(temperature=1.0, seed=3) == drawn(temperature=1.0, seed=3) != drawn(temperature=1.0, seed=4)
    assert drawn(top_k=1) == drawn(top_p=1e-6, seed=5) == drawn(temperature=1e-4) == drawn(temperature=0.0) == greedy
    state = torch.random.get_rng_state()
    assert len({drawn(temperature=5.0) for _ in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)  # that of the program


def test_tokens_are_drawn_from_the_distribution_that_the_options_leave(model: Path) -> None:
    """With top_k = 2 the two most likely tokens in the share of their probabilities; without it all of them, not 50 as
    transformers does by itself: nearly uniform draws are outside of these with (50 / 96)**60 against it."""
    with torch.inference_mode():
        logits = Twin(model).model(torch.tensor([[9]])).logits[0, -1]
    first, second = (logits / 4).softmax(-1).topk(2).values.tolist()
    words = [said([token]) for token in logits.argsort(descending=True).tolist()]
    writer = open_writer(model, GenerateOptions(), silent)

    def draw(temperature: float, top_k: int | None) -> Counter[str]:
        how = [GenerateOptions(max_new_tokens=1, temperature=temperature, top_k=top_k, seed=seed) for seed in range(60)]
        return Counter(written(writer, "w7", options, None) for options in how)

    limited, share = draw(4.0, 2), first / (first + second)
    assert set(limited) == set(words[:2])
    assert abs(limited[words[0]] - 60 * share) < 5 * (60 * share * (1 - share)) ** 0.5
    assert set(draw(1000.0, None)) - set(words[:50])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--temperature", "-1"), "--temperature -1.0"),
        (("--temperature", "nan"), "--temperature nan"),
        (("--top-p", "0"), "--top-p 0.0"),
        (("--top-p", "1.5"), "--top-p 1.5"),
        (("--seed", "1"), "--seed has no effect"),
    ],
)
@pytest.mark.parametrize("command", [("chat",), ("generate", "--prompt", "w7")], ids=["chat", "generate"])
def test_numbers_that_make_no_sense_are_refused_first(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], words: tuple[str, ...], told: str
) -> None:
    refused = cli(*command, tmp_path / "absent", *words)
    assert refused.code == 2 and told in refused.err


def test_text_is_handed_on_character_by_character() -> None:
    """Characters of several tokens arrive whole, spaces as they are, and all pieces together are the text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO)
    text = "def f(x):\n    return 'é € 😀 नमस्ते'  # done ."
    pieces: list[str] = []
    stream = _Stream(tokenizer, pieces.append)
    stream.put(torch.tensor([[5, 6]]))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == text and len(pieces) > 10
    assert not [piece for piece in pieces if "\ufffd" in piece]
    cut = _Stream(tokenizer, pieces.append)
    for tokens in ([[5]], [tokenizer("€", add_special_tokens=False)["input_ids"][0]]):
        cut.put(torch.tensor(tokens))
    before = len(pieces)
    cut.end()
    assert pieces[before:] == [cut.text] == ["\ufffd"]


def test_what_a_model_writes_cannot_steer_the_terminal(cli: Cli, typed: Typed, tmp_path: Path) -> None:
    """Every word of this model clears the screen; as JSON it is escaped."""
    folder = write_chat_model(tmp_path / "model")
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    vocabulary = fields["model"]["vocab"]
    for number in range(10, len(vocabulary)):
        del vocabulary[f"w{number - 2}"]
        vocabulary[f"\x1b[2J\x9b\r\u202e{number}"] = number
    path.write_text(json.dumps(fields))
    prompt = ("--prompt", "w1", "--max-new-tokens", "3")
    typed("w1\n")
    for done in (cli("generate", folder, *prompt), cli("chat", folder, "--max-new-tokens", "3")):
        assert done.code == 0 and "\ufffd[2J\ufffd\ufffd\ufffd" in done.out
        assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(done.out)
    as_json = cli("generate", folder, *prompt, "--json").out
    assert "\x1b" not in as_json and "\x1b[2J" in json.loads(as_json)["text"]


def test_harmless_text_stays() -> None:
    kept = "a\tb\nक्‍ष 👩‍👩‍👧 עברית\u00a0\u3000"
    assert harmless(kept) == kept
    assert harmless("\x07\x7f\u2067\ud800") == "\ufffd" * 4


def test_text_ends_with_the_last_position(model: Path) -> None:
    options = GenerateOptions(max_new_tokens=100, temperature=3.0, seed=1)
    prompt = " ".join(["w7"] * 124)
    assert len(slideconvert.generate(model, prompt, options).split()) <= 4
    with pytest.raises(InputError, match="128 tokens, but the model has 128 positions"):
        slideconvert.generate(model, prompt + " w7" * 4, options)
