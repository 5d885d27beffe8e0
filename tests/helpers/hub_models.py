"""What the tests over hub_server.py share: a checkpoint (bytes that only look like one), and its errors read."""

from __future__ import annotations

import json

import pytest

from slideconvert.errors import InputError

TOKEN = "hf_" + "s3cret" * 6
WEIGHTS = {
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    "model-00002-of-00002.safetensors": b"second shard" * 500,
}
INDEX = json.dumps({"weight_map": {"a.weight": min(WEIGHTS), "b.weight": max(WEIGHTS)}}).encode()
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"\x0asentencepiece",
    "tekken.json": b'{"vocab": []}',
    "LICENSE.txt": b"Apache 2.0",
    "README.md": b"# A model",
    "model.safetensors.index.json": INDEX,
    **WEIGHTS,
}
"""The files of a sharded checkpoint, all of which a download wants."""


def sentence(error: pytest.ExceptionInfo[InputError], code: int = 2) -> str:
    """The message as the command line prints it: one line with a hint. code: the exit code it must have."""
    assert error.value.exit_code == code and error.value.hint
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
