"""Process several linears at once: one thread each, torch single-threaded within it.

Torch's own threads split every small operation and wait for each other after it; with anything else running on
the machine that costs more than it gains (see LOG.md). Whole linears need no synchronization: torch releases the
GIL while it computes. Results come in the order of the items and do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8
"""More threads than this wait for the interpreter more than they compute, and each holds a linear in memory."""


def count(device: str = "cpu") -> int:
    """How many linears are processed at once: one per core, at most MOST; two on a GPU (one reads, one computes)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if device != "cpu" else min(MOST, cores)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], device: str = "cpu"
) -> Generator[Result, None, None]:
    """function(item) for each item, computed ahead by `count(device)` threads and yielded in order.

    An exception of an item is raised when its turn comes, after the running items finish.
    """
    before = torch.get_num_threads()
    workers = count(device)
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)
        torch.set_num_threads(before)
