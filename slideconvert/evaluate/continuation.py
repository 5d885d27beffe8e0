"""Text that a checkpoint writes: continuations of a prompt, and answers in a conversation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CONFIG, GENERATION
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError, SlideConvertError
from ..models.load import load_model, load_tokenizer, running_model
from ..texts.chat import WITHOUT, Conversation, Message, render
from .perplexity import DAMAGED

Write = Callable[[str], None]
"""Is handed text piece by piece, as it is generated."""
CUT = "\ufffd"
"""What the tokens of a part of a character are decoded to."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature: the logits are divided by it; 0 takes the most likely token. top_p: only the
    most likely tokens that have this probability together; None for all. top_k: only so many; None for all. seed: of
    the draws, None for another one each time."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def words(self) -> dict[str, Any]:
        """The arguments of transformers' generate."""
        if not self.temperature:
            return {"do_sample": False}
        # Without its own numbers, transformers draws from 50 tokens.
        limits = {"top_p": self.top_p or 1.0, "top_k": self.top_k or 0}
        return {"do_sample": True, "temperature": self.temperature, **limits}


class TextWriter:
    """A checkpoint that writes. The model is loaded when it first does.

    activations, device: as for `load_model`.
    """

    def __init__(self, checkpoint: Checkpoint, activations: str, device: str) -> None:
        self._checkpoint, self._activations, self._device = checkpoint, activations, device
        self._tokenizer = load_tokenizer(checkpoint)
        self._ends = end_tokens(checkpoint)

    @cached_property
    def model(self) -> Any:
        """The causal language model of transformers."""
        return load_model(self._checkpoint, activations=self._activations, device=self._device, backend="auto")

    def continued(self, prompt: str, most: int, sampling: Sampling, write: Write | None = None) -> str:
        """The continuation of `prompt` by at most `most` tokens, without the prompt and without special tokens.

        It ends at any end token that the model's files name, and with the model's last position. write: is handed the
        continuation in pieces as well. InputError for a prompt without a token, and for one that fills all positions;
        SlideConvertError for logits that are NaN or infinity.
        """
        tokens = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not tokens.numel():
            raise InputError("the prompt has no tokens", hint="give at least one word")
        return self._write(tokens, most, sampling, self._ends, write)

    def check_chat(self) -> None:
        """InputError if there is no chat template."""
        if not self._tokenizer.chat_template:
            raise InputError(f"{self._checkpoint.path} has no chat template", hint=WITHOUT)

    def answered(self, messages: Sequence[Message], most: int, sampling: Sampling, write: Write | None = None) -> str:
        """The answer to messages, the last of which is the user's, through the chat template. As `continued`;
        InputError if there is no template, or it refuses the messages."""
        self.check_chat()
        talk = Conversation(tuple(messages), "the conversation")
        text = render(self._tokenizer, talk, str(self._checkpoint.path), add_generation_prompt=True)
        tokens = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        own = self._tokenizer.eos_token_id
        return self._write(tokens, most, sampling, [*self._ends, *([] if own is None else [own])], write)

    def _write(self, tokens: Tensor, most: int, sampling: Sampling, ends: list[int], write: Write | None) -> str:
        """tokens [1, n] int64 -> the text after them."""
        from transformers import LogitsProcessorList

        count, positions = tokens.shape[1], getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None:
            if count >= positions:
                raise InputError(
                    f"{count} tokens, but the model has {positions} positions", hint="shorten it; in a chat, /reset"
                )
            most = min(most, positions - count)
        stream, device = _Stream(self._tokenizer, write), torch.device(self._device)
        tokens, padding = tokens.to(device), self._tokenizer.pad_token_id
        words = {"max_new_tokens": most, "eos_token_id": ends or None, **sampling.words()}
        words |= {"pad_token_id": self._tokenizer.eos_token_id if padding is None else padding, "streamer": stream}
        with (
            torch.inference_mode(),
            running_model(self._checkpoint),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(secrets.randbits(32) if sampling.seed is None else sampling.seed)
            self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                logits_processor=LogitsProcessorList([_check_logits]),
                **words,
            )
        return stream.text


class Chat:
    """A conversation with a checkpoint.

    messages: all of it so far, as {"role": …, "content": …}. say(words) adds the user's words, and the answer that it
    returns; a turn that fails adds nothing. reset() keeps the system message alone.
    """

    def __init__(self, writer: TextWriter, system: str | None, most: int, sampling: Sampling) -> None:
        writer.check_chat()
        self._writer, self._most, self._sampling = writer, most, sampling
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._turns = 0
        self.messages = list(self._system)

    def say(self, words: str, write: Write | None = None) -> str:
        """The answer to the user's words. write: is handed it in pieces as well, as it is generated.

        Raises as `TextWriter.answered`.
        """
        sampling = self._sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self._turns)
        asked = [*self.messages, {"role": "user", "content": words}]
        answer = self._writer.answered(asked, self._most, sampling, write)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        self._turns += 1
        return answer

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages, self._turns = list(self._system), 0


class _Stream:
    """Receives tokens from transformers' generate, the prompt's first, and hands on the text that is complete."""

    def __init__(self, tokenizer: Any, write: Write | None) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._tokens: list[int] | None = None
        self._written = 0
        self.text = ""

    def put(self, tokens: Tensor) -> None:
        """tokens: the prompt's [1, n], or those of a step [1], int64."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += tokens.flatten().tolist()
        # All tokens again: the text of one depends on those before, by spaces and by characters of several tokens.
        self.text = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not self.text.endswith(CUT):
            self._hand_on()

    def end(self) -> None:
        """What is left is a character that was cut."""
        self._hand_on()

    def _hand_on(self) -> None:
        if self._write and len(self.text) > self._written:
            self._write(self.text[self._written :])
        self._written = len(self.text)


def _check_logits(tokens: Tensor, logits: Tensor) -> Tensor:
    """The same logits [1, vocabulary]. NaN would be the most likely word; -inf is one that the model's files forbid."""
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise SlideConvertError(f"the logits after {tokens.shape[1]} tokens are not finite", hint=DAMAGED)
    return logits


def end_tokens(checkpoint: Checkpoint) -> list[int]:
    """The end tokens of generation_config.json, and of config.json: servers stop at those of the first.

    InputError for a generation_config.json that names anything but token numbers.
    """
    path = checkpoint.path / GENERATION
    files = {checkpoint.path / CONFIG: checkpoint.config, **({path: read_json(path)} if path.is_file() else {})}
    found: set[int] = set()
    for where, fields in files.items():
        named = fields.get("eos_token_id")
        tokens = named if isinstance(named, list) else [] if named is None else [named]
        if bad := [token for token in tokens if type(token) is not int or token < 0]:
            raise InputError(f"{where}: eos_token_id names {bad[0]!r}", hint="tokens are numbers from 0 on")
        found.update(tokens)
    return sorted(found)
