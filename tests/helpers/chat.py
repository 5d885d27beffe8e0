"""Pico models with a chat template of the words that their tokenizers know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers import pico
from tests.helpers.calibrated import write_tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant', 'system') %}{{ raise_exception('no ' ~ message.role ~ 's') }}"
    "{% endif %}<s> {{ {'user': 'w1', 'assistant': 'w2', 'system': 'w3'}[message.role] }} {{ message.content }} </s> "
    "{% endfor %}{% if add_generation_prompt %}<s> w2{% endif %}"
)
"""w1 is the user, w2 the assistant, w3 the system; <s> and </s> are around each message."""


def write_chat_model(folder: Path, *, template: str | None = TEMPLATE, **config: Any) -> Path:
    """A pico model with its tokenizer, and a chat template unless it is None."""
    write_tokenizer(pico.write(folder, config=config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
