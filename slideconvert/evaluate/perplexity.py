"""Perplexity over sequences of tokens: exp of the mean next-token cross-entropy inside the sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CONFIG, GENERATION
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError, SlideConvertError
from ..models.head import Head
from ..models.load import load_model, load_tokenizer, running_model, tokenizer_settings
from ..progress import Progress, silent
from .text import around_documents, read_documents, token_sequences

BATCH_TOKENS = 4096
LENGTH = 512
"""Default number of tokens of a sequence."""
DAMAGED = "the checkpoint is damaged or its scales overflow: run slideconvert verify on it"
"""The way out if a model does not compute numbers."""


def perplexity(model: torch.nn.Module, sequences: Tensor, progress: Progress = silent) -> float:
    """sequences [n, length] int64 -> exp(mean cross-entropy of tokens 2 … length, each given all before it).

    The model runs in its own dtype and on its own device, at most BATCH_TOKENS tokens or one sequence at a time, and
    head.PIECE logits; the losses are summed in float64. SlideConvertError if a loss is not finite: such a model is
    broken, and a number would hide that.
    """
    device = next(model.parameters()).device
    batch = max(1, BATCH_TOKENS // sequences.shape[1])
    head, total = Head(model), 0.0

    def loss(hidden: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(head.logits(hidden), wanted, reduction="none")

    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            progress("evaluate", start, len(sequences))
            tokens = sequences[start : start + batch].to(device)
            hidden = head.hidden(tokens)[:, :-1].flatten(0, 1)
            total += float(head.losses(loss, hidden, tokens[:, 1:].flatten()).double().sum())
            if not math.isfinite(total):
                raise SlideConvertError(
                    f"the loss is not finite in sequences {start} … {start + len(tokens) - 1}", hint=DAMAGED
                )
    progress("evaluate", len(sequences), len(sequences))
    return math.exp(total / (sequences.shape[0] * (sequences.shape[1] - 1)))


def measure(
    checkpoints: Mapping[str, Checkpoint],
    text: str,
    *,
    sequences: int = 160,
    length: int = LENGTH,
    activations: str = "quantized",
    device: str = "cpu",
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Measure the perplexity of each checkpoint on the first `sequences` sequences of `text`, with its own tokenizer.

    checkpoints: by the name to report. text: as for `read_documents`. length: tokens per sequence. activations:
    "quantized" per token as in serving, or "float".

    Returns one row per checkpoint: "ckpt" (its name), "perplexity", "sequences" (their number), "bytes" (of all weight
    files), and "ratio" (of its perplexity to the first one's). InputError for text that cannot be read or is too short;
    SlideConvertError for a loss that is not finite.
    """
    rows: list[dict[str, Any]] = []
    for name, checkpoint in checkpoints.items():
        tokenizer = load_tokenizer(checkpoint)
        around = around_documents(tokenizer, tokenizer_settings(checkpoint))
        tokens = token_sequences(tokenizer, read_documents(text), length, sequences, around=around)
        model = load_model(checkpoint, activations=activations, device=device)
        with running_model(checkpoint):
            value = perplexity(model, tokens, partial(_named, progress, name))
        first = rows[0]["perplexity"] if rows else value
        rows.append(
            {
                "ckpt": name,
                "perplexity": value,
                "sequences": len(tokens),
                "bytes": checkpoint.bytes,
                "ratio": value / first,
            }
        )
    return rows


def _named(progress: Progress, name: str, _stage: str, done: int, total: int) -> None:
    progress(name, done, total)


def continue_text(
    checkpoint: Checkpoint, prompt: str, *, most: int, activations: str = "quantized", device: str = "cpu"
) -> str:
    """The greedy continuation of `prompt` by at most `most` tokens, without the prompt and without special tokens.

    It ends at any end token that the model's files name. InputError for a prompt without a token; SlideConvertError for
    logits that are NaN or infinity.
    """
    from transformers import LogitsProcessorList

    tokenizer, ends = load_tokenizer(checkpoint), end_tokens(checkpoint) or None
    encoded = tokenizer(prompt, return_tensors="pt")
    if not encoded["input_ids"].numel():
        raise InputError("the prompt has no tokens", hint="give at least one word")
    model: Any = load_model(checkpoint, activations=activations, device=device, backend="auto")
    inputs = {name: tensor.to(device) for name, tensor in encoded.items() if name in ("input_ids", "attention_mask")}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.inference_mode(), running_model(checkpoint):
        words = {"max_new_tokens": most, "do_sample": False, "pad_token_id": padding, "eos_token_id": ends}
        tokens = model.generate(**inputs, **words, logits_processor=LogitsProcessorList([_check_logits]))
    return str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


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
