"""Progress of an upload: silences the bars of huggingface_hub and calls a function with the bytes sent instead.

Over HTTP, huggingface_hub reads a file through the operation that it gets from us. Through Xet, a library reads the
file and reports to a class of huggingface_hub, which ours replaces for the transfer. If a later version has no such
class, progress through Xet advances file by file.
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

Advance = Callable[[int], None]
"""Called with the number of bytes of a file that were read or sent."""
_XET_REPORTS = "huggingface_hub.utils._xet_progress_reporting", "XetUploadProgressReporter"


class _ReportingFile(io.FileIO):
    """A file that reports how far it has been read. After a broken connection, reading starts over."""

    def __init__(self, path: str, advance: Advance) -> None:
        super().__init__(path, "rb")
        self._advance = advance

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._advance(self.tell())
        return data


def addition(name: str, content: Path | bytes, advance: Advance) -> Any:
    """A CommitOperationAdd that adds `content` as `name` to a commit and reports what is read of it."""
    from huggingface_hub import CommitOperationAdd

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            content = self.path_or_fileobj
            with io.BytesIO(content) if isinstance(content, bytes) else _ReportingFile(content, advance) as file:
                yield file

    return Addition(path_in_repo=name, path_or_fileobj=content)


@contextmanager
def silence() -> Iterator[None]:
    """Silence the bars of huggingface_hub, and its warnings: on retries they contain URLs signed for writing."""
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
def xet_progress(advance: Advance) -> Iterator[None]:
    """For the transfer of one file inside `silence`: pass the reports of Xet, if it is used, to `advance`."""
    from huggingface_hub import constants

    class Reporter:
        """Has the interface of huggingface_hub's class."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def update_progress(self, report: Any, *_: Any) -> None:
            done = getattr(report, "total_bytes_completed", None)
            if isinstance(done, int):
                advance(done)

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
    _bars(True)  # without bars, Xet reports nothing
    try:
        yield
    finally:
        setattr(home, name, theirs)
        _bars(False)


def _bars(shown: bool) -> None:
    """Switch the bars of huggingface_hub; if its environment variable sets them, this only warns."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (enable_progress_bars if shown else disable_progress_bars)()
