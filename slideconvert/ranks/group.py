"""The ranks of a job: how they find each other, wait for each other, and end together when one of them fails.

torchrun and accelerate tell a process its place in the environment. Tensors go through NCCL between GPUs and through
gloo between CPUs; words go through the store that both use to find each other. A collective operation does not notice
that a rank has failed elsewhere and waits for minutes, so ranks meet at a gate before it: a barrier that looks for
failures while it waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .. import errors, launched
from ..errors import InputError, SlideConvertError

Result = TypeVar("Result")

FAILED, STOPPED, LEFT, GONE = "failed", "stopped", "left", "gone"
"""Keys of the store: the first failure, how many ranks have stopped working, how many are about to end, and how many
will not ask the store again, which may be rank 0's."""
SHORTEST, LONGEST = 0.0005, 0.1
"""Seconds between two looks into the store, twice as many after each look."""
GRACE = 20.0
"""Seconds that a failing rank waits until the others have noticed: launchers kill them as soon as one ends."""


@dataclass
class _Group:
    """The ranks of this job. number: of this rank. gates: passed so far. failure: what ends the job, None so far."""

    store: Store
    number: int
    count: int
    gates: int = 0
    failure: BaseException | None = None


_group: _Group | None = None


def count() -> int:
    """The number of ranks."""
    return _group.count if _group else 1


def number() -> int:
    """The number of this rank, from 0."""
    return _group.number if _group else 0


def first() -> bool:
    """Whether this is rank 0, which writes files and shows progress."""
    return number() == 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other ranks of the environment for the block; with one process there, do nothing.

    device: where this rank computes, for instance cuda:1. All ranks leave the block together. An error that leaves the
    block ends all ranks: the others raise it too, at their next gate, with `elsewhere` set. InputError if the
    environment is incomplete, or if the process uses torch.distributed already.
    """
    global _group
    if not launched.several():
        yield
        return
    _group = _join(device)
    try:
        try:
            yield
            gate()
        except BaseException as error:
            told = end_all(error)
            _meet(LEFT, 0.0 if _interrupted(error) else GRACE)
            _meet(GONE, GRACE if first() and not _interrupted(error) else 0.0)
            if told is not error:
                raise told from error
            raise
        _meet(GONE, GRACE if first() else 0.0)
        dist.destroy_process_group()
    finally:
        _group = None


def _join(device: str) -> _Group:
    if missing := launched.missing():
        raise InputError(
            f"{launched.WORLD} says that there are several processes, but {', '.join(missing)} is not set",
            hint="start them with torchrun or accelerate launch, or unset it",
        )
    if dist.is_initialized():
        raise InputError("this process uses torch.distributed already", hint="convert in processes of their own")
    kind = torch.device(device)
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    store, own, size = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("torch", store), rank=own, world_size=size)
    return _Group(PrefixStore("slideconvert", store), own, size)


def gate() -> None:
    """Wait until all ranks are here. If one of them fails meanwhile, raise its error."""
    if _group is None:
        return
    _group.gates += 1
    store, here, before = _group.store, f"gate {_group.gates}", f"gate {_group.gates - 2}"
    arrived = _asked(lambda: store.add(here, 1))
    if arrived == _group.count:
        _asked(lambda: store.set(f"{here} open", ""))
        _asked(lambda: [store.delete_key(key) for key in (before, f"{before} open")])
    _await(lambda: store.check([f"{here} open"]))


def heed() -> None:
    """If another rank has failed, raise its error. For long work between two gates."""
    if _group is None:
        return
    store = _group.store
    if _asked(lambda: store.check([FAILED])):
        raise _elsewhere(_asked(lambda: store.get(FAILED)).decode())


@contextmanager
def first_ahead() -> Iterator[None]:
    """Run the block on rank 0, and then on the others."""
    if not first():
        gate()
    yield
    if first():
        gate()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this rank works as a single process, sharing nothing; the others wait at their next gate."""
    global _group
    group, _group = _group, None
    try:
        yield
    finally:
        _group = group


def collective(call: Callable[[], Result]) -> Result:
    """A collective operation. If it breaks because a rank has failed, raise that rank's error."""
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _await(lambda: False, most=2.0)
        hint = "see what the other ranks say; a conversion can be continued with --resume"
        raise SlideConvertError(f"a connection between ranks broke: {error}", hint=hint) from error


def end_all(error: BaseException) -> BaseException:
    """Stop the job because of `error`: the others learn of it at their next gate. Rank 0 waits some seconds until all
    have stopped working.

    Returns the error that ends the job: `error`, or that of another rank which failed before, with `elsewhere` set.
    """
    if _group is None:
        return error
    if _group.failure:
        return _group.failure
    _group.failure = error
    if not getattr(error, "elsewhere", False):
        told = json.dumps({"rank": _group.number, **_described(error)})
        with suppress(RuntimeError):  # the store is gone with its rank
            before = _group.store.compare_set(FAILED, "", told).decode()
            if before != told:
                _group.failure = _elsewhere(before)
    _meet(STOPPED, GRACE if first() and not _interrupted(error) else 0.0)
    return _group.failure


def _described(error: BaseException) -> dict[str, str | int]:
    """An error in words, with the exit code of its process."""
    kind = type(error).__name__
    if isinstance(error, SlideConvertError):
        return {"kind": kind, "what": error.what, "hint": error.hint, "code": error.exit_code}
    return {"kind": kind, "what": f"{kind}: {error}", "hint": "", "code": 130 if _interrupted(error) else 70}


def _interrupted(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt)


def _elsewhere(told: str) -> SlideConvertError:
    """The error of another rank, of the same class if it is one of errors.py."""
    failure = json.loads(told)
    kind: Any = getattr(errors, failure["kind"], None)
    known = isinstance(kind, type) and issubclass(kind, SlideConvertError)
    made: SlideConvertError = (kind if known else SlideConvertError)(
        f"rank {failure['rank']}: {failure['what']}", failure["hint"]
    )
    made.exit_code, made.elsewhere = failure["code"], True
    return made


def _meet(key: str, seconds: float) -> None:
    """Count this rank at a key, and wait at most so long until all are counted there."""
    assert _group is not None
    end = time.monotonic() + seconds
    with suppress(RuntimeError):  # the store is gone with its rank
        met = _group.store.add(key, 1)
        while met < _group.count and time.monotonic() < end:
            time.sleep(LONGEST)
            met = _group.store.add(key, 0)


def _await(come: Callable[[], bool], most: float | None = None) -> None:
    """Wait until `come` returns True, for `most` seconds at most. If a rank fails meanwhile, raise its error."""
    pause, since = SHORTEST, time.monotonic()
    while not _asked(come):
        heed()
        if most is not None and time.monotonic() - since > most:
            return
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)


def _asked(ask: Callable[[], Result]) -> Result:
    """What the store answers."""
    try:
        return ask()
    except RuntimeError as error:
        lost = SlideConvertError(
            "the store of the ranks does not answer: rank 0 or the launcher on its host has ended",
            hint="see what rank 0 says; a conversion can be continued with --resume",
        )
        lost.elsewhere = True
        raise lost from error
