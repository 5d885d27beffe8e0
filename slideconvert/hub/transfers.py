"""How far an upload is: huggingface_hub shows bars of its own; they are silenced, and a callback is told instead.

By HTTP it reads a file through the operation that we hand it. Through Xet it gives the file's path to a library, whose
reports go to a class of its own, for which ours stands in meanwhile. Should that class be another one day, progress
through Xet goes file by file.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import http_library

Tell = Callable[[int], None]
"""Told how many bytes of a file have gone."""
_XET_REPORTS = "huggingface_hub.utils._xet_progress_reporting", "XetUploadProgressReporter"


class _Told(io.FileIO):
    """A file that tells how far it has been read. Read again after a broken connection, it starts over."""

    def __init__(self, path: str, tell: Tell) -> None:
        super().__init__(path, "rb")
        self._told = tell

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._told(self.tell())
        return data


def addition(name: str, content: Path | bytes, tell: Tell) -> Any:
    """The operation that adds `content` as `name` to a commit: a CommitOperationAdd that tells what is read of it."""
    from huggingface_hub import CommitOperationAdd

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            content = self.path_or_fileobj
            with io.BytesIO(content) if isinstance(content, bytes) else _Told(content, tell) as file:
                yield file

    return Addition(path_in_repo=name, path_or_fileobj=content)


@contextmanager
def silence() -> Iterator[None]:
    """No bars of huggingface_hub, and no warnings: on retries they name addresses that are signed for writing."""
    from huggingface_hub.utils import are_progress_bars_disabled

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", http_library().__name__)]
    levels, shown = [logger.level for logger in loggers], not are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    _bars(False)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        _bars(shown)


@contextmanager
def xet_told(tell: Tell) -> Iterator[None]:
    """For the transfer of one file inside `silence`: what Xet reports, if it is used, goes to `tell`."""
    from huggingface_hub import constants

    class Reporter:
        """Takes what huggingface_hub's class takes."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def update_progress(self, report: Any, *_: Any) -> None:
            done = getattr(report, "total_bytes_completed", None)
            if isinstance(done, int):
                tell(done)

        def close(self) -> None: ...

    module, name = _XET_REPORTS
    try:
        home = import_module(module)
        theirs = getattr(home, name)
    except (ImportError, AttributeError):
        home = None
    if home is None or constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        yield
        return
    setattr(home, name, Reporter)
    _bars(True)  # asked for none, Xet reports nothing
    try:
        yield
    finally:
        setattr(home, name, theirs)
        _bars(False)


def _bars(shown: bool) -> None:
    """Switch huggingface_hub's bars; where its environment variable has switched them, it only warns."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (enable_progress_bars if shown else disable_progress_bars)()
