"""Running models over text: numbers of each token, perplexity among them, and greedy continuations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CONFIG, GENERATION
from ..checkpoint.reader import Checkpoint, read_json
from ..errors import InputError, SlideConvertError
from ..models.head import Head
from ..models.load import load_model, load_tokenizer, running_model
from ..progress import Progress, silent
from .divergence import losses_of

Score = Callable[[Tensor, Tensor], Tensor]
"""Of the logits [tokens, vocabulary] float32, which it may overwrite, and the tokens that came [tokens] int64: numbers
[tokens, …] float64."""

BATCH_TOKENS = 4096
LENGTH = 512
"""Default number of tokens of a sequence."""
DAMAGED = "the checkpoint is damaged or its scales overflow: run slideconvert verify on it"
"""The way out if a model does not compute numbers."""


def perplexity(model: torch.nn.Module, sequences: Tensor, progress: Progress = silent) -> float:
    """sequences [n, length] int64 -> exp(mean cross-entropy of tokens 2 … length, each given all before it).

    Runs the model as `token_numbers`.
    """

    def score(logits: Tensor, wanted: Tensor) -> Tensor:
        return losses_of(logits, wanted)[0]

    return math.exp(float(token_numbers(model, sequences, score, progress=progress).mean()))


def token_numbers(
    model: torch.nn.Module,
    sequences: Tensor,
    score: Score,
    progress: Progress = silent,
) -> Tensor:
    """sequences [n, length] int64 -> what `score` says of tokens 2 … length, [n, length - 1, …] float64 on the CPU.

    score: of pieces of these tokens, in their order.

    The model runs in its own dtype and on its own device, at most BATCH_TOKENS tokens or one sequence at a time, and
    head.PIECE logits. SlideConvertError if a number is not finite: such a model is broken, and a mean would hide that.
    """
    device = next(model.parameters()).device
    batch, each = max(1, BATCH_TOKENS // sequences.shape[1]), sequences.shape[1] - 1
    head, found = Head(model), []

    def of_piece(hidden: Tensor, wanted: Tensor) -> Tensor:
        return score(head.logits(hidden), wanted)

    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            progress("evaluate", start, len(sequences))
            tokens = sequences[start : start + batch].to(device)
            stop = start + len(tokens)
            hidden = head.hidden(tokens)[:, :-1].flatten(0, 1)
            numbers = head.losses(of_piece, hidden, tokens[:, 1:].flatten())
            if not torch.isfinite(numbers).all():
                what = "the loss is" if numbers.dim() == 1 else "the loss or the divergence from the base is"
                raise SlideConvertError(f"{what} not finite in sequences {start} … {stop - 1}", hint=DAMAGED)
            found.append(numbers.cpu())
    progress("evaluate", len(sequences), len(sequences))
    return torch.cat(found).view(len(sequences), each, *found[0].shape[1:])


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
