"""Work on a GPU that is repeated as a CUDA graph.

A small model's layer takes some 80 kernels of a few microseconds, and Python takes longer to start one than the GPU to
run it: a step of training waits for Python for nine tenths of its time. A graph starts all kernels of a step at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EAGER = 2
"""Calls that run as they are before the capture: libraries initialize what they need when they are first called."""
LARGEST_INPUTS = 1 << 27
"""Bytes of all inputs of a call that is captured: larger ones keep the GPU busy anyway, and a graph keeps its own copy
of them and the memory of its intermediate results."""

logger = logging.getLogger(__name__)


class Captured:
    """A function that runs as it is at first, and is captured and replayed when it is called again and again.

    run: a function of tensors on one device that changes other tensors in place, allocates what it needs, and waits
    neither for the device nor for another process. changed: the tensors that it changes and of whose versions autograd
    or caches know; they count as changed after each replay. Only calls on a GPU are captured, of tensors with the
    shapes of the calls before and LARGEST_INPUTS bytes at most; all others run as they are. So do all calls after a
    capture that failed, and a warning says why.
    """

    def __init__(self, run: Callable[..., None], changed: Sequence[Tensor] = ()) -> None:
        self._run, self._changed = run, changed
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._shapes: list[torch.Size] = []
        self._calls = 0
        self._failed = False

    def __call__(self, *inputs: Tensor) -> None:
        shapes = [given.shape for given in inputs]
        if self._graph is None and self._worth_it(inputs, shapes):
            self._capture(inputs)
        if self._graph is None or shapes != self._shapes:
            self._run(*inputs)
            return
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        torch.autograd.graph.increment_version(self._changed)

    def _worth_it(self, inputs: tuple[Tensor, ...], shapes: list[torch.Size]) -> bool:
        self._calls = self._calls + 1 if shapes == self._shapes else 1
        self._shapes = shapes
        fits = all(given.is_cuda for given in inputs) and sum(given.nbytes for given in inputs) <= LARGEST_INPUTS
        return fits and self._calls > EAGER and not self._failed

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        graph, kept = torch.cuda.CUDAGraph(), tuple(given.clone() for given in inputs)
        # What caches made of the present state must be made within the graph.
        torch.autograd.graph.increment_version(self._changed)
        try:
            # Other threads may use the GPU meanwhile, as those that copy to pinned memory.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run(*kept)
        except RuntimeError as error:
            self._failed = True
            torch.autograd.graph.increment_version(self._changed)  # what is cached now was never computed
            logger.warning("runs without a CUDA graph, slower for small models: %s", str(error).partition("\n")[0])
            return
        self._graph, self._inputs = graph, kept
