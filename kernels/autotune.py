"""Choose the fastest way to compute something by timing the candidates, once per power of two of tokens.

What was chosen is kept for the process, and by the tables of times (backends/table.py) for those that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from .sources import versioned

TIMED_RUNS = 3
SHARE_OF_MEMORY = 4
"""Timing may use one part in this many of the free memory."""
LARGEST_OCTAVE = 14
"""More tokens than 16384 are computed as 16384 are."""

_CHOSEN: dict[tuple[str, str], dict[int, int]] = {}
"""The candidate for each octave, by GPU and by what is computed."""


def learn(gpu: str, choices: Mapping[str, Mapping[int, int]]) -> None:
    """Take over what another process has found out on such a GPU."""
    for what, chosen in choices.items():
        _CHOSEN.setdefault((gpu, what), {}).update(chosen)


def learned(gpu: str) -> dict[str, dict[int, int]]:
    """What is known on such a GPU."""
    return {what: dict(chosen) for (device, what), chosen in _CHOSEN.items() if device == gpu and chosen}


def may_time() -> bool:
    """Whether work may be timed now: not while a CUDA graph is captured, nor while torch.compile traces."""
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return not capturing and not torch.compiler.is_compiling()


class Autotuner:
    """The fastest of several candidates for each power of two, found on first use.

    what: what is computed, for messages and tables: its name, shape and dtypes. operation: whose candidates these are.
    bytes_per_token: the memory that timing takes on `device`.
    """

    def __init__(self, what: str, operation: str, bytes_per_token: int, device: torch.device) -> None:
        self.what, self.bytes_per_token, self.device = what, bytes_per_token, device
        kept = versioned(what, operation)  # numbers of candidates mean nothing after a change of them
        self._chosen = _CHOSEN.setdefault((torch.cuda.get_device_name(device), kept), {})

    def choose(self, tokens: int, candidates: Callable[[int], Iterable[tuple[int, Callable[[int], None]]]]) -> int:
        """candidates(tokens): numbers of candidates, each with a function that starts it on a stream.

        While a CUDA graph is captured nothing is timed: what is best for the nearest number of tokens is taken.
        RuntimeError if nothing is known then, or if there is no candidate.
        """
        octave = min((tokens - 1).bit_length(), LARGEST_OCTAVE)
        chosen = self._chosen.get(octave)
        if chosen is not None:
            return chosen
        if not may_time():
            if not self._chosen:
                raise RuntimeError(
                    f"the fastest way for {tokens} tokens of {self.what} is not known yet, and nothing can be timed "
                    "while a CUDA graph is captured: run the model once before"
                )
            return self._chosen[min(self._chosen, key=lambda known: abs(known - octave))]
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
