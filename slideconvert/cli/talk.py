"""Text of checkpoints: generate, chat."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from ..api.options import ChatOptions, GenerateOptions
from ..errors import InputError, one_line
from .common import INTERRUPTED, Model, Terminated, echo_json
from .options import Display, HeadedOption, ResultDisplay, command
from .progress import progress_bar

if TYPE_CHECKING:
    from ..evaluate.continuation import Chat

TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
"""The classes of characters that turn the direction of the text around them."""
RESET, EXIT = "/reset", "/exit"


@command("generate", GenerateOptions, ResultDisplay, without=("verbose",))
@click.argument("ckpt", type=Model())
@click.option("--prompt", cls=HeadedOption, heading="Text", required=True, help="Text to continue, or to answer.")
def generate_command(ckpt: str, prompt: str, options: GenerateOptions, display: Display) -> None:
    """Continue a prompt with the checkpoint CKPT, or answer it: on a GPU by its kernels, on a CPU in plain torch.

    \b
      slideconvert generate out/ --prompt "def main" --max-new-tokens 40
      slideconvert generate out/ --chat --prompt "Why is the sky blue?" --temperature 0.7

    The text appears as it is generated. Control characters in it are shown as U+FFFD.
    """
    with _ending_quietly():
        _generate(ckpt, prompt, options, display)


def _generate(ckpt: str, prompt: str, options: GenerateOptions, display: Display) -> None:
    from ..api.writing import check_generate, open_writer, written

    check_generate(options)
    with progress_bar(display.shown) as progress:
        writer = open_writer(ckpt, options, progress)
    if display.as_json:
        echo_json({"prompt": prompt, "text": written(writer, prompt, options, None)})
        return
    shown_prompt = [] if options.chat else [prompt]

    def write(text: str) -> None:
        while shown_prompt:  # with the first words: an error says nothing on stdout
            _show(shown_prompt.pop())
        _show(text)

    written(writer, prompt, options, write)
    write("\n")


@command("chat", ChatOptions, ResultDisplay, without=("as_json", "verbose"))
@click.argument("ckpt", type=Model())
def chat_command(ckpt: str, options: ChatOptions, display: Display) -> None:
    """Talk to the checkpoint CKPT through its chat template: a message a line, and answers as they are generated.

    \b
      slideconvert chat out/ --system "Answer in one sentence." --temperature 0.7
      echo "Why is the sky blue?" | slideconvert chat out/

    /reset forgets the conversation, /exit or Ctrl-D ends it. Ctrl-C stops an answer, which is forgotten with its
    question; at the prompt it ends the conversation.
    """
    with _ending_quietly():
        _chat(ckpt, options, display)


def _chat(ckpt: str, options: ChatOptions, display: Display) -> None:
    from ..api.writing import chat

    with progress_bar(display.shown) as progress:
        talk = chat(ckpt, options, progress=progress)
    watched = sys.stdin.isatty()
    if watched and display.shown:
        click.echo(f"{RESET} forgets the conversation, {EXIT} or Ctrl-D ends it, Ctrl-C stops an answer", err=True)
    piped = (line.decode(errors="replace") for line in sys.stdin.buffer)
    for line in _typed() if watched else piped:
        try:
            if not _turn(talk, line.strip()):
                return
        except Terminated:
            raise
        except KeyboardInterrupt:
            if not watched:
                raise
            click.echo()  # the prompt begins a line
        except InputError as error:
            if not watched:
                raise
            click.echo(f"error: {one_line(str(error))}", err=True)


@contextmanager
def _ending_quietly() -> Iterator[None]:
    """An interrupt ends these commands without the words of others: they leave nothing that can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo()  # the prompt of the shell begins a line
        sys.exit(INTERRUPTED)


def _turn(talk: Chat, words: str) -> bool:
    """Answer a line, or do what it says; whether the conversation goes on."""
    if words == EXIT:
        return False
    if words == RESET:
        talk.reset()
    elif words:
        talk.say(words, _show)
        _show("\n")
    return True


def _typed() -> Iterator[str]:
    """The lines that somebody types."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() editing keys and a history
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return


def _show(text: str) -> None:
    click.echo(harmless(text), nl=False)


def harmless(text: str) -> str:
    """Text of a model as a terminal may show it. U+FFFD replaces control characters, which move the cursor or set the
    terminal, lone surrogates, and overrides of the text direction; line feeds and tabs are kept."""

    def harmful(char: str) -> bool:
        return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in TURNING

    return "".join("\ufffd" if harmful(char) and char not in "\n\t" else char for char in text)
