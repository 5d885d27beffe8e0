"""Checkpoints side by side on a text: perplexity, and how far each is from the first, the base."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..models.load import load_model, load_tokenizer, model_config, running_model, tokenizer_settings
from ..progress import Progress, silent
from ..texts.chat import template_of
from ..texts.named import Text, name_of
from ..texts.read import read_documents
from ..texts.tokens import around_documents, token_sequences
from .divergence import divergence, losses_of, top_of
from .kept_base import LIMIT, TOP, KeptBase, Origin, check_kept_bytes, checkpoint_sha256, kept_base, tokens_sha256
from .perplexity import LENGTH, Score, token_numbers
from .served import Served, measure_served
from .statistics import by_position, divergence_summary, perplexity_of, ratio_of

SEQUENCES = 160
"""Default number of sequences."""
COMPARED = (
    "ratio", "ratio_stderr", "kl_mean", "kl_stderr", "kl_median", "kl_99", "kl_99_9", "kl_max", "same_top",
    "same_top_stderr", "acceptance", "acceptance_stderr", "top_mass",
)  # fmt: skip
"""Fields of a row that say how far a checkpoint is from the base; None where that is unknown."""


@dataclass(frozen=True)
class TextProtocol:
    """How checkpoints are measured on a text.

    sequences: the first ones of the text, at most. length: tokens of each. activations: "quantized" per token as
    in serving, or "float". device: of torch. positions: also report by position. top: tokens of the base's
    distributions that are kept for each position. limit: bytes of the file that keeps them, at most. base_file: its
    name, None for a file without one in the folder `scratch` (None: the folder for temporary files). column: of the
    text, None for the first of texts.read.KNOWN.
    """

    sequences: int = SEQUENCES
    length: int = LENGTH
    activations: str = "quantized"
    device: str = "cpu"
    positions: bool = False
    top: int = TOP
    limit: int = LIMIT
    base_file: Path | None = None
    scratch: Path | None = None
    column: str | None = None


@dataclass(frozen=True)
class TextResults:
    """rows: one per checkpoint, see `measure`. notes: sentences on what could not be compared."""

    rows: list[dict[str, Any]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    """A checkpoint with its tokens [sequences, length] of the text, and the tokens that its model knows and reads."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Any
    tokens: Tensor
    vocabulary: int
    most: int | None


@dataclass
class _Found:
    """Rows and notes so far, and what every row is compared with: losses [sequences, length - 1] and file of the
    base."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    losses: Tensor | None = None
    kept: KeptBase | None = None


def measure(
    checkpoints: Mapping[str, Checkpoint],
    text: Text,
    protocol: TextProtocol = TextProtocol(),
    *,
    served: Served | None = None,
    progress: Progress = silent,
) -> TextResults:
    """Measure each checkpoint on the first sequences of `text`, with its own tokenizer, against the first one.

    checkpoints: by the name to report. text: as for `read_documents`; each
    checkpoint writes conversations with its own chat template. served: a checkpoint behind a server, measured
    last with the tokens of the first one.

    A row has ckpt (the name), sequences, tokens (predicted ones), bytes (of all weight files; None behind a server),
    perplexity and perplexity_stderr, and the fields of COMPARED: ratio of the perplexities; KL divergence of base to
    checkpoint per token in nats, mean, median, percentiles and maximum; same_top, the share of positions where both
    expect the same token most; acceptance, the expected share of drafted tokens that speculative decoding accepts;
    top_mass, the mean probability of the tokens that the base's file keeps. Where that is below 1, KL divergences
    are lower bounds and acceptance is an upper one (see `divergence`). Standard errors are those of `statistics`.
    With `positions` also by_position, see `statistics.by_position`. Fields that need more than one sequence, the base,
    or equal tokens are None.

    The base runs once, and its distributions go through a file of bounded size. InputError for text that cannot be read
    or is too short, positions that a model does not have, and a file that is too large, stale or not ours;
    SlideConvertError for numbers that are not finite and for a server that fails.
    """
    prepared = [_prepare(name, checkpoint, text, protocol) for name, checkpoint in checkpoints.items()]
    base, found = prepared[0], _Found()
    if protocol.positions:
        for one in prepared:
            _check_length(one, protocol.length)
    found.notes += [
        f"{one.name} reads {one.most} tokens (max_position_embeddings), sequences have {protocol.length}"
        for one in prepared
        if one.most is not None and one.most < protocol.length
    ]
    with ExitStack() as stack:
        if len(prepared) > 1 or served or protocol.base_file:
            found.kept = stack.enter_context(_file_for(base, text, protocol, progress))
        for one in prepared:
            numbers = _run(one, base, found, protocol, progress)
            _add_row(found, one.name, numbers, one.checkpoint.bytes, positions=protocol.positions)
        if served:
            assert found.kept is not None
            numbers, notes = measure_served(served, base.tokens, base.tokenizer, found.kept, progress)
            found.notes += notes
            _add_row(found, served.name, numbers, None, positions=protocol.positions)
    return TextResults(found.rows, tuple(found.notes))


def _prepare(name: str, checkpoint: Checkpoint, text: Text, protocol: TextProtocol) -> _Prepared:
    tokenizer, config = load_tokenizer(checkpoint), model_config(checkpoint)
    around = around_documents(tokenizer, tokenizer_settings(checkpoint))
    documents = read_documents(text, column=protocol.column, template=template_of(tokenizer, name))
    tokens = token_sequences(tokenizer, documents, protocol.length, protocol.sequences, around=around)
    most = getattr(config, "max_position_embeddings", None)
    return _Prepared(name, checkpoint, tokenizer, tokens, int(config.vocab_size), most)


def _check_length(one: _Prepared, length: int) -> None:
    if one.most is not None and one.most < length:
        raise InputError(
            f"{one.name}: the model has {one.most} positions (max_position_embeddings), sequences have {length} tokens",
            hint=f"--length {one.most}",
        )


def _file_for(
    base: _Prepared, text: Text, protocol: TextProtocol, progress: Progress
) -> AbstractContextManager[KeptBase]:
    """The file of the base's distributions."""
    count, length = base.tokens.shape
    check_kept_bytes(count, length, protocol.top, base.vocabulary, protocol.limit)
    origin = Origin(
        checkpoint=checkpoint_sha256(base.checkpoint, progress) if protocol.base_file else "",
        activations=protocol.activations,
        text=Path(name_of(text)).name,
        tokens=tokens_sha256(base.tokens),
        sequences=count,
        length=length,
        vocabulary=base.vocabulary,
        top=min(protocol.top, base.vocabulary),
    )
    return kept_base(origin, protocol.base_file, protocol.scratch)


def _run(one: _Prepared, base: _Prepared, found: _Found, protocol: TextProtocol, progress: Progress) -> Tensor:
    """[sequences, length - 1, 1] losses of a checkpoint, or with what divides it from the base
    [sequences, length - 1, 4]."""
    kept, stage = found.kept, one.name
    score: Score = _keeping(None)
    if one is base and kept and kept.complete:
        return kept.losses()[..., None]
    if one is base:
        score = _keeping(kept)
        if kept:
            stage = f"{one.name} ({sum(spec.bytes for spec in kept.origin.specs) / 1e6:.0f} MB on disk)"
    elif why := _incomparable(one, base):
        found.notes.append(f"{one.name}: {why}, so nothing but perplexities is compared with {base.name}")
    else:
        assert kept is not None
        score = _against(kept)
    model = load_model(one.checkpoint, activations=protocol.activations, device=protocol.device)
    with running_model(one.checkpoint):
        return token_numbers(model, one.tokens, score, partial(_named, progress, stage))


def _keeping(kept: KeptBase | None) -> Score:
    """Losses [n, 1] of a piece, whose distributions are kept in the file if there is one."""

    def score(logits: Tensor, wanted: Tensor) -> Tensor:
        losses, total = losses_of(logits, wanted)
        if kept:
            kept.append(top_of(logits, total, kept.origin.top), losses)
        return losses[:, None]

    return score


def _against(kept: KeptBase) -> Score:
    """Losses and divergence from the base of a piece, [n, 4]: pieces follow one another through all positions."""
    done = 0

    def score(logits: Tensor, wanted: Tensor) -> Tensor:
        nonlocal done
        base = kept.top(done, done + len(wanted)).to(logits.device)
        done += len(wanted)
        losses, total = losses_of(logits, wanted)
        return torch.cat([losses[:, None], divergence(base, logits, total)], -1)

    return score


def _incomparable(one: _Prepared, base: _Prepared) -> str:
    """Why the distributions of two checkpoints cannot be compared; "" if they can."""
    if not torch.equal(one.tokens, base.tokens):
        return "its tokenizer makes other tokens of this text"
    if one.vocabulary != base.vocabulary:
        return f"its model has {one.vocabulary} words and that of {base.name} {base.vocabulary}"
    return ""


def _add_row(found: _Found, name: str, numbers: Tensor, size: int | None, *, positions: bool) -> None:
    losses, base = numbers[..., 0], found.losses
    count, each = losses.shape
    row: dict[str, Any] = {"ckpt": name, "sequences": count, "tokens": count * each, "bytes": size}
    row |= {**perplexity_of(losses), **dict.fromkeys(COMPARED)}
    compared = base is not None and numbers.shape[-1] > 1
    if compared:
        assert base is not None and found.kept is not None
        row |= {**ratio_of(losses, base), **divergence_summary(numbers[..., 1:], found.kept.mass())}
    else:
        first = found.rows[0]["perplexity"] if found.rows else row["perplexity"]
        row["ratio"] = row["perplexity"] / first
    if positions:
        row["by_position"] = by_position(losses, base if compared else None, numbers[..., 1] if compared else None)
    if base is None:
        found.losses = losses
    found.rows.append(row)


def _named(progress: Progress, name: str, _stage: str, done: int, total: int) -> None:
    progress(name, done, total)
