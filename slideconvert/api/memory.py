"""Models that a program holds, as sources."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.staging import writing
from ..errors import InputError


@contextmanager
def as_source(model: Any, tokenizer: Any = None, *, name: str | None = None) -> Iterator[Path]:
    """A transformers model in memory as a source for `plan`, `convert`, `evaluate` and the others.

    The model is written to a temporary folder, which is deleted at the end of the block; TMPDIR says where. To
    --resume an interrupted conversion, write it to a folder of your own with save_pretrained instead. tokenizer: needed
    for whatever reads text. name: what the reports call the source, by default the model's own. InputError for what is
    no PreTrainedModel, such as a model with adapters that are not merged; OutputError if the disk is full.

        >>> with slideconvert.as_source(loaded, tokenizer, name="mine") as source:
        ...     slideconvert.plan(source, PlanOptions(method="magnitude")).snapshot.id
        'mine'
    """
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is no PreTrainedModel of transformers",
            hint="merge adapters first, such as with merge_and_unload(), or name a folder",
        )
    name = name or Path(str(getattr(model.config, "_name_or_path", ""))).name or "model"
    if Path(name).name != name or name in (".", ".."):
        raise InputError(f"name '{name}' is no name of a folder", hint="use letters, digits, '-', '_' and '.'")
    with tempfile.TemporaryDirectory(prefix="slideconvert-") as scratch:
        folder = Path(scratch) / name
        with writing(folder, after_full="free disk space, or set TMPDIR to a folder on another disk"):
            with _without_bars():
                model.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        yield folder


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers shows a bar while it writes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
