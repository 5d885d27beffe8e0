"""Conversations as text, through the chat template of a tokenizer.

A template is a program of the checkpoint in the language Jinja. transformers runs it in Jinja's sandbox, where it reads
the messages and reaches neither files nor Python.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

COLUMNS = ("messages", "conversations")
"""The columns of a record that hold a conversation, unless another is named."""
FORMS = (("role", "content"), ("from", "value"))
"""The names of a message's speaker and of its words, as OpenAI writes them and as ShareGPT does."""
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    **{role: role for role in ("user", "assistant", "system", "tool")},
}
"""The speakers of ShareGPT by the names that templates know."""
TODAY = datetime.datetime(2025, 1, 1)
"""The date that templates find when they write it into a text: the same text gives the same tokens every day."""
WITHOUT = "use an instruct model of the family, or add its chat_template.jinja to the folder"

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages with the fields that chat templates read: role, content and others. where: what errors call it."""

    messages: tuple[Message, ...]
    where: str


class Rendered(str):
    """A document that a chat template has written, with the tokens before and after it."""


Template = Callable[[Conversation], Rendered]


def parse_conversation(value: Any, where: str) -> Conversation:
    """The messages of a record, a list of {"role": …, "content": …} or of {"from": …, "value": …}.

    InputError, which names `where`, for anything else.
    """
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: {type(value).__name__} instead of a list of messages", hint=_form())
    return Conversation(tuple(_message(one, f"{where}, message {at}") for at, one in enumerate(value, 1)), where)


def _message(value: Any, where: str) -> Message:
    fields = {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else {}
    speaker, words = next((form for form in FORMS if form[0] in fields), FORMS[0])
    role, content = fields.pop(speaker, None), fields.pop(words, "" if "tool_calls" in fields else None)
    if not isinstance(role, str) or content is None:
        raise InputError(f"{where}: without {'words' if isinstance(role, str) else 'speaker'}", hint=_form())
    if speaker == "from":
        if role.lower() not in ROLES:
            raise InputError(f"{where}: from '{role}'", hint=f"known are {', '.join(ROLES)}")
        fields, role = {}, ROLES[role.lower()]
    return {"role": role, "content": _words(content, where), **fields}


def _words(content: Any, where: str) -> str:
    """The text of a message; of a list of parts, the texts of all."""
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: content that is no text", hint="language models read text alone: leave it out")
    return "".join(texts)  # type: ignore[arg-type]


def _form() -> str:
    return " or ".join(f'{{"{speaker}": "user", "{words}": "…"}}' for speaker, words in FORMS) + " is a message"


def template_of(tokenizer: Any, owner: str) -> Template:
    """Writes conversations with the chat template of a tokenizer. owner: the checkpoint, for errors.

    A template without a date of its own finds TODAY. The function raises InputError if there is no template, and for a
    conversation that the template refuses.
    """

    def write(conversation: Conversation) -> Rendered:
        return render(tokenizer, conversation, owner, strftime_now=TODAY.strftime)

    return write


def render(tokenizer: Any, conversation: Conversation, owner: str, **words: Any) -> Rendered:
    """A conversation as the chat template of a tokenizer writes it. words: for transformers and the template.

    InputError if there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{conversation.where}: {owner} has no chat template to write conversations with",
            hint=f"{WITHOUT}; or name a column of plain text",
        )
    try:
        written = tokenizer.apply_chat_template(list(conversation.messages), tokenize=False, **words)
    except Exception as error:  # the template is a program: it fails in any way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise InputError(
            f"{conversation.where}: the chat template of {owner} refuses it ({reason})",
            hint="most take an optional system message, then user and assistant in turns",
        ) from error
    return Rendered(written)
