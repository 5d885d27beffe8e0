"""Choose the fastest way to compute something by timing the candidates, once per power of two of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

TIMED_RUNS = 3
SHARE_OF_MEMORY = 4
"""Timing may use one part in this many of the free memory."""


class Autotuner:
    """The fastest of several candidates for each power of two, found on first use.

    what: what is computed, for error messages. bytes_per_token: the memory that timing takes on `device`.
    """

    def __init__(self, what: str, bytes_per_token: int, device: torch.device) -> None:
        self.what, self.bytes_per_token, self.device = what, bytes_per_token, device
        self._chosen: dict[int, int] = {}

    def choose(self, tokens: int, candidates: Callable[[int], Iterable[tuple[int, Callable[[int], None]]]]) -> int:
        """candidates(tokens): numbers of candidates, each with a function that starts it on a stream. RuntimeError
        while a CUDA graph is captured, or if there is no candidate."""
        octave = (tokens - 1).bit_length()
        if octave not in self._chosen:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"the fastest way for {tokens} tokens of {self.what} is not known yet, and nothing can be timed "
                    "while a CUDA graph is captured: run the model once with this many tokens before"
                )
            self._chosen[octave] = self._time_all(candidates(1 << self._affordable(octave)))
        return self._chosen[octave]

    def _affordable(self, octave: int) -> int:
        """If memory is short, measure with fewer tokens."""
        free = torch.cuda.mem_get_info(self.device)[0]
        while octave > 4 and self.bytes_per_token << octave > free // SHARE_OF_MEMORY:
            octave -= 1
        return octave

    def _time_all(self, candidates: Iterable[tuple[int, Callable[[int], None]]]) -> int:
        best = (float("inf"), -1)
        for candidate, start in candidates:
            best = min(best, (self._milliseconds(start, best[0]), candidate))
        if best[1] < 0:
            raise RuntimeError(f"nothing computes {self.what} on {torch.cuda.get_device_name(self.device)}")
        return best[1]

    def _milliseconds(self, start: Callable[[int], None], record: float) -> float:
        """The least of several runs; stops after the first if it is far from the record."""
        stream = torch.cuda.current_stream(self.device)
        least = float("inf")
        for run in range(1 + TIMED_RUNS):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record(stream)
            start(stream.cuda_stream)
            after.record(stream)
            after.synchronize()
            if run:  # the first loads the code
                least = min(least, before.elapsed_time(after))
                if least > 2 * record:
                    break
        return least
