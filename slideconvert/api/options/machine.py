"""Where models are read from, where the work is done, and how the output is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...core import choices
from ...texts.named import Documents
from .base import Options, option


@dataclass(frozen=True)
class RevisionOptions(Options):
    """Which revision of a Hub id is read."""

    HEADING: ClassVar[str] = "Source"

    revision: str | None = option("Branch, tag or commit of a Hub id.  [default: main]")


@dataclass(frozen=True)
class SourceOptions(RevisionOptions):
    """Which revision of a Hub id is read, and where its files are kept."""

    HEADING: ClassVar[str] = "Source"

    source_cache: Path | None = option(
        "Folder for sources from the Hub and from GGUF files.  [default: the Hugging Face cache]", metavar="DIR"
    )
    low_disk: bool = option(
        "Fetch the shards of a Hub id as they are read and keep at most three of them; some are fetched twice.",
        default=False,
    )


@dataclass(frozen=True)
class DeviceOptions(Options):
    """Where to compute."""

    HEADING: ClassVar[str] = "Compute"

    device: str | None = option("Where to compute.  [default: auto]", metavar="auto|cpu|cuda[:N]")


@dataclass(frozen=True)
class ComputeOptions(DeviceOptions):
    """How calibration runs the model."""

    HEADING: ClassVar[str] = "Compute"

    keep_on: str | None = option("Where calibration keeps hidden states.  [default: device]", choices=choices.PLACES)
    batch_tokens: int | None = option("Calibration tokens computed at once.  [default: 4096; 8192 on a GPU]", minimum=1)
    precision: str | None = option(
        "Precision of the model in calibration; auto is bfloat16 where that is fast.  [default: auto]",
        choices=choices.PRECISIONS,
    )


@dataclass(frozen=True)
class OffloadOptions(Options):
    """Where calibration and training keep what the GPU does not need all the time."""

    HEADING: ClassVar[str] = "Compute"

    offload: bool = option(
        "Keep hidden states (unless --keep-on says where) and the optimizer of training end to end in CPU memory.",
        default=False,
    )


@dataclass(frozen=True)
class WriteOptions(Options):
    """How the output is written and read back."""

    HEADING: ClassVar[str] = "Output"

    resume: bool = option("Continue an interrupted run of the same settings.", default=False)
    verify: bool = option("Do not read the output back; the report says so.", default=True, flag="--no-verify")


@dataclass(frozen=True)
class OutputOptions(WriteOptions):
    """How the output is measured."""

    HEADING: ClassVar[str] = "Output"

    overwrite: bool = option("First delete what an earlier conversion wrote to the folder.", default=False)
    text: str | Path | Documents | None = option(
        "Measure the perplexity of source and output on this text, for the reports.", metavar="TEXT"
    )
    text_column: str | None = option(
        "Column of --text, strings or messages.  [default: text, messages or conversations]", metavar="NAME"
    )
    sequences: int | None = option("Sequences of --text to measure on.  [default: 160]", minimum=1)
    max_kl: float | None = option(
        "Publish nothing if the measured KL divergence from the source exceeds X nats per token.", metavar="X"
    )
    max_output_error: float | None = option(
        "Publish nothing if the output error of a linear on held-out calibration text exceeds X, such as 0.3.",
        metavar="X",
    )
