"""The options of jobs that write text with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import option
from .checkpoints import ModelOptions


@dataclass(frozen=True)
class SamplingOptions(ModelOptions):
    """How tokens are drawn."""

    HEADING: ClassVar[str] = "Sampling"

    temperature: float | None = option(
        "Draw tokens from logits divided by X; 0 takes the most likely one.  [default: 0; 1 with --top-p or --top-k]",
        metavar="X",
    )
    top_p: float | None = option("Draw from the most likely tokens with this probability together.", metavar="X")
    top_k: int | None = option("Draw from this many most likely tokens.", minimum=1)
    seed: int | None = option("Seed of the draws.  [default: another each time]", minimum=0)


@dataclass(frozen=True)
class GenerateOptions(SamplingOptions):
    """Options of `generate`."""

    HEADING: ClassVar[str] = "Text"

    chat: bool = option("Answer the prompt, through the model's chat template.", default=False)
    system: str | None = option("System message before the prompt of --chat.", metavar="TEXT")
    max_new_tokens: int | None = option("Tokens to generate at most.  [default: 32; with --chat 512]", minimum=1)


@dataclass(frozen=True)
class ChatOptions(SamplingOptions):
    """Options of `chat`."""

    HEADING: ClassVar[str] = "Text"

    system: str | None = option("System message.", metavar="TEXT")
    max_new_tokens: int | None = option("Tokens of an answer at most.  [default: 512]", minimum=1)
