"""Serve checkpoints in vLLM and keep what each reached.

A start takes minutes, mostly of one CPU core, so several engines may start side by side. They take turns, a sample of
everything each, so that what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import SlideConvertError
from ...progress import Progress
from ..results import Results
from ..suite import Outcome
from .checkpoints import Checkpoints, Served
from .process import Engine
from .rows import ServeCase, ServeRow

ENGINE = Path(__file__).parents[2] / "runtime" / "vllm_speed.py"
KINDS = ("decode", "latency", "prefill", "mixed", "rate")
UNMEASURABLE = "the tokens after the first took no time that can be told from noise: give a longer --output"
LONGEST_MIXED = 1024 + 128
MIXED_SEQUENCES = 64
"""Tokens of the longest request of a mixture, and how many run at once (runtime/vllm_speed.py)."""


@dataclass(frozen=True)
class Load:
    """What is asked of each checkpoint. batches: sequences that are decoded at once, after prompts of `prompt` tokens,
    by `output` tokens. lengths: tokens of an output of one sequence, timed from its prompt on. prefill: numbers of
    prompts and of their tokens, in one step, as 8x1024. mixed: numbers of requests of several lengths that are
    there at once. rates: requests per second that arrive at random, for `seconds` each. repeats: samples of
    each, but one of each rate. graphs: tokens of steps for which CUDA graphs are captured, beside the batches."""

    batches: tuple[int, ...]
    prefill: tuple[str, ...]
    mixed: tuple[int, ...]
    rates: tuple[float, ...]
    lengths: tuple[int, ...] = ()
    prompt: int = 32
    output: int = 128
    seconds: float = 20.0
    repeats: int = 5
    graphs: tuple[int, ...] = ()

    def cases(self, served: Served) -> list[ServeCase]:
        """What a checkpoint is measured for."""
        sizes: list[tuple[str, float, str]] = [("decode", batch, str(batch)) for batch in self.batches]
        sizes += [("latency", length, str(length)) for length in self.lengths]
        sizes += [("prefill", math.prod(map(int, shape.split("x"))), shape) for shape in self.prefill]
        sizes += [("mixed", count, str(count)) for count in self.mixed]
        sizes += [("rate", rate, f"{rate:g}/s") for rate in self.rates]
        return [served.case(what, size, shape) for what, size, shape in sizes]

    def task(self, model: Path, cases: Sequence[ServeCase], kv_bytes: int) -> dict[str, Any]:
        """What the engine is told to measure: these cases alone."""
        of = {what: [case for case in cases if case.what == what] for what in KINDS}
        return {
            "model": str(model),
            "batches": [case.size for case in of["decode"]],
            "lengths": [case.size for case in of["latency"]],
            "prefill": [case.shape for case in of["prefill"]],
            "mixed": [case.size for case in of["mixed"]],
            "rates": [case.size for case in of["rate"]],
            "prompt": self.prompt,
            "output": self.output,
            "seconds": self.seconds,
            "graphs": list(self.graphs),
            "kv_bytes": kv_bytes,
        }

    @property
    def varied(self) -> bool:
        """Whether requests of several lengths run."""
        return bool(self.mixed or self.rates)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        prompts = [int(shape.partition("x")[2]) for shape in self.prefill]
        outputs = [*self.lengths, *([self.output] if self.batches else [])]
        return max([self.prompt + max(outputs, default=0), LONGEST_MIXED if self.varied else 0, *prompts]) + 1

    @property
    def most_tokens(self) -> int:
        """Tokens that the cache must hold at once."""
        decoded = max(self.batches, default=0) * (self.prompt + self.output + 1)
        prompts = [math.prod(map(int, shape.split("x"))) for shape in self.prefill]
        single = self.prompt + max(self.lengths, default=0) + 1
        return max([decoded, single, MIXED_SEQUENCES * LONGEST_MIXED if self.varied else 0, *prompts])


@dataclass(frozen=True)
class Starts:
    """How engines start. together: at most so many side by side; each needs GPU memory for its whole model. limit:
    seconds for a start, and again for the measurement of a checkpoint."""

    together: int = 1
    limit: float = 600.0
    engine: Path = ENGINE


def serve(
    wanted: Sequence[Served], checkpoints: Checkpoints, load: Load, starts: Starts, results: Results,
    progress: Progress, seconds: float, now: Callable[[], float] = time.monotonic,
) -> Outcome:  # fmt: skip
    """Measure what the results lack of these checkpoints. None is started that may not be ready in `seconds`; a
    checkpoint that fails is a row with the reason."""
    end, done, failed = now() + seconds, 0, 0
    missing = [one for one in wanted if _lacking(one, load, results)]
    left = sum(len(_lacking(one, load, results)) for one in missing)
    samples = left * load.repeats
    try:
        for first in range(0, len(missing), starts.together):
            some = missing[first : first + starts.together]
            if now() + starts.limit > end:
                break
            before = done * load.repeats

            def sampled(taken: int, before: int = before) -> None:
                progress("serve", before + taken, samples)

            for row in _measured(some, checkpoints, load, starts, results, sampled):
                results.add(row)
                failed, done, left = failed + bool(row.failure), done + 1, left - 1
            progress("serve", done * load.repeats, samples)
    finally:
        results.save()
    return Outcome(done - failed, failed, left)


def _lacking(served: Served, load: Load, results: Results) -> list[ServeCase]:
    return [case for case in load.cases(served) if not results.has(case, served.version)]


def _measured(
    some: Sequence[Served], checkpoints: Checkpoints, load: Load, starts: Starts, results: Results,
    sampled: Callable[[int], None],
) -> Iterator[ServeRow]:  # fmt: skip
    """Start the engines side by side, and when all are ready or have failed let them take turns. sampled: called with
    the number of samples so far."""
    with ExitStack() as open_engines:

        def started(same: list[Served]) -> list[tuple[Served, Engine | Exception]]:
            """Those of one checkpoint, which is there while they start."""
            found: list[tuple[Served, Engine | Exception]] = []
            try:
                path = checkpoints.make(same[0])
            except (OSError, SlideConvertError) as error:
                return [(one, error) for one in same]
            for one in same:
                task = load.task(path, _lacking(one, load, results), checkpoints.kv_bytes(path, load.most_tokens))
                log = checkpoints.folder / f"{one.slug}.log"
                environment = {"VLLM_CACHE_ROOT": str(checkpoints.folder / f"cache-{one.slug}"), **one.environment}
                found.append(
                    (one, open_engines.enter_context(Engine(starts.engine, task, environment, log, starts.limit)))
                )
            for number, (one, engine) in enumerate(found):
                assert isinstance(engine, Engine)
                try:
                    engine.wait_until_ready()
                except RuntimeError as error:
                    engine.stop()
                    found[number] = (one, error)
            checkpoints.remove(path)
            return found

        checkpoints.prepare(some)
        sources = [list(same) for _, same in groupby(some, lambda one: one.checkpoint)]
        with ThreadPoolExecutor(len(sources)) as pool:
            ready = [one for found in pool.map(started, sources) for one in found]
        lacking = [_lacking(one, load, results) for one, _ in ready]
        _take_turns(ready, lacking, load.repeats, sampled)
        for (one, engine), cases in zip(ready, lacking, strict=True):
            yield from _rows(one, cases, engine, len(some))


def _take_turns(
    engines: list[tuple[Served, Engine | Exception]], cases: Sequence[Sequence[ServeCase]], repeats: int,
    sampled: Callable[[int], None],
) -> None:  # fmt: skip
    """Let each engine take so many samples of its cases; one that fails is replaced by its error."""
    taken = 0
    for _ in range(repeats):
        for number, (one, engine) in enumerate(engines):
            if isinstance(engine, Engine):
                try:
                    engine.take_turn()
                except RuntimeError as error:
                    engine.stop()
                    engines[number] = (one, error)
            taken += len(cases[number])
            sampled(taken)


def _rows(one: Served, cases: list[ServeCase], engine: Engine | Exception, together: int) -> list[ServeRow]:
    """What an engine measured, or why it did not."""
    if isinstance(engine, Exception):
        return [ServeRow(case, one.version, failure=str(engine)) for case in cases]
    told = engine.told()
    by_shape = {(row["what"], row["shape"]): row for row in told["rows"]}
    found = []
    for case in cases:
        row = by_shape[case.what, case.shape]
        speeds = sorted(row["samples"])
        if speeds[0] <= 0:
            found.append(ServeRow(case, one.version, failure=f"{case.what} {case.shape}: {UNMEASURABLE}"))
            continue
        latency = {name: percentiles(row.get(name, [])) for name in ("ttft", "tpot", "itl")}
        found.append(
            ServeRow(
                case, one.version, median(speeds), speeds[0], speeds[-1], *latency["ttft"], *latency["tpot"],
                *latency["itl"], gib=told["gib"], peak_gib=row.get("peak_gib"),
                load_s=told["load_s"] if together == 1 else None, runs="; ".join(told["runs"]),
            )
        )  # fmt: skip
    return found


def percentiles(seconds: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Median, 90 % and 99 % of times, in milliseconds: the least that so many of them do not exceed. None of none."""
    ordered = sorted(seconds)
    if not ordered:
        return None, None, None
    half, most, nearly = (1e3 * ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99))
    return half, most, nearly
