"""The options of each job that uses a finished checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...core import choices
from ...texts.named import Documents
from .base import option
from .machine import DeviceOptions
from .target import TimesOptions


@dataclass(frozen=True)
class VerifyOptions(DeviceOptions):
    """Options of `verify`."""

    HEADING: ClassVar[str] = "Source"

    source: str | None = option("Source model, a folder, a Hub id or a GGUF file: compare every weight with it.")
    revision: str | None = option("Branch, tag or commit of the --source.  [default: main]")


@dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """How a checkpoint is run."""

    activations: str | None = option(
        "Quantize the activations as in serving, or not.  [default: quantized]", choices=choices.ACTIVATIONS
    )


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of `eval`: perplexity of a text, tasks of lm-eval, or both."""

    HEADING: ClassVar[str] = "Measurement"

    text: str | Path | Documents | None = option(
        "Perplexity, and divergence from the first checkpoint, on a .txt, .jsonl or .parquet file, or on a data set "
        "NAME[:CONFIG]:SPLIT, of text or of conversations.",
        metavar="TEXT",
    )
    text_column: str | None = option(
        "Column of --text, strings or messages.  [default: text, messages or conversations]", metavar="NAME"
    )
    sequences: int | None = option("Sequences of --text.  [default: 160]", minimum=1)
    length: int | None = option("Tokens of a sequence of --text.  [default: 512]", minimum=2)
    by_position: bool = option("Also by the number of tokens before: 1, 2 to 3, 4 to 7 and so on.", default=False)
    top: int | None = option(
        "Most likely tokens of each position to compare one by one; the others count as one.  [default: 1024; with "
        "--served 20]",
        minimum=1,
    )
    keep_base: Path | None = option(
        "Keep what the first checkpoint expects in this file, or read it there instead of running the checkpoint.",
        metavar="FILE",
    )
    base_gb: float | None = option("Disk for that at most, in GB.  [default: 4]", metavar="GB")
    served: str | None = option(
        "Measure a checkpoint through the vLLM server at this URL as well, against the first checkpoint.", metavar="URL"
    )
    served_model: str | None = option("Its name at --served.  [default: the first that the server has]", metavar="NAME")
    api_key_env: str | None = option("Environment variable with the API key of --served.", metavar="NAME")
    tasks: str | None = option("Tasks of lm-eval, an optional extra: arc_easy,hellaswag.", metavar="NAME,NAME...")
    task_path: Path | None = option(
        "Folder with your own tasks as YAML files of lm-eval. Tasks with Python code are refused.",
        metavar="DIR",
    )
    limit: int | None = option("Only the first questions of each task.", minimum=1)
    shots: int | None = option("Examples before each question.  [default: the task's own number]", minimum=0)


@dataclass(frozen=True)
class CompareOptions(ModelOptions, TimesOptions):
    """Options of `compare`."""

    HEADING: ClassVar[str] = "Comparison"

    baseline: str | None = option("The dense source of the checkpoints, a folder, a Hub id or a GGUF file.")
    text: str | None = option(
        "Measure perplexity and divergence from the --baseline now, on a .txt, .jsonl or .parquet file, or on a data "
        "set NAME[:CONFIG]:SPLIT.  [default: what the conversions reported]"
    )
    sequences: int | None = option("Sequences of --text.  [default: 160]", minimum=1)
    length: int | None = option("Tokens of a sequence of --text.  [default: 512]", minimum=2)
    out: Path | None = option("Write the comparison as an HTML page to this new file.", metavar="FILE")


@dataclass(frozen=True)
class PushOptions(DeviceOptions):
    """Options of `push`."""

    HEADING: ClassVar[str] = "Push"

    dry_run: bool = option("Only show what would be sent and deleted.", default=False)
    public: bool = option("Make a new repository public; an existing one keeps its visibility.", default=False)
    revision: str | None = option(
        "Branch to push to, created from main if it is new.  [default: main]", metavar="BRANCH"
    )
    message: str | None = option("Commit message.  [default: a description of the checkpoint]")
    package: str | None = option(
        "Wheel or repository from which the model card installs slideconvert: https://….whl or git+https://….  "
        "[default: the card leaves it open]",
        metavar="URL",
    )
    verify: bool = option("Verify the checkpoint first; needed after convert --no-verify.", default=False)
