"""From a choice to what calls compute with: the prepared weight, and everything autotuned before the first call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import autotune
from ..cache import say_once
from .base import Backend, Dtypes, Prepared, shared
from .choose import AUTO, TORCH, BackendChoice, Host, Settings, backends_for, choose
from .routed import Routed
from .table import key_of, save, table_of


def make_ready(
    choice: BackendChoice, weight: Any, settings: Settings, dtypes: Dtypes, host: Host = TORCH
) -> tuple[BackendChoice, tuple[Tensor, ...]]:
    """The choice with its prepared weight, and all found out that calls depend on. Where memory does not suffice, the
    next best choice, which is logged; torch.cuda.OutOfMemoryError if nothing fits. ValueError if the weight is damaged.

    dtypes: of what calls will pass; calls with others work, but may compile something first.
    """
    spec = choice.backend.spec
    while True:
        try:
            prepared = choice.backend.prepare(weight)
            _complete(choice.backend, prepared, dtypes, host)
            return choice, prepared
        except torch.cuda.OutOfMemoryError:
            following = _next_best(choice, settings, host)
            if following is None:
                raise
            say_once(
                f"{spec}: no memory for the prepared weight of {choice.backend.name}, {following.backend.name} runs it"
            )
            choice = following
        torch.cuda.empty_cache()


def _next_best(choice: BackendChoice, settings: Settings, host: Host) -> BackendChoice | None:
    """What takes less memory: one prepared weight instead of two, else the host's dense kernel."""
    spec, device, name = choice.backend.spec, choice.backend.device, choice.backend.name
    if len(_forms(choice.backend)) > 1:
        return choose(spec, device, replace(settings, backend=AUTO, memory=0.0), host)
    family: Any = type(spec)
    kinds = [kind for way, kind in backends_for(family, host).items() if way in host.stock and way != name]
    able = [kind for kind in kinds if not kind.refusal(spec, device)]
    if name in host.stock or not able:
        return None
    return BackendChoice(shared(able[0], spec, device), f"no memory for {name}")


def _forms(backend: Backend) -> set[str]:
    return {way.form for way in backend.ways} if isinstance(backend, Routed) else {backend.form}


def _complete(backend: Backend, prepared: Prepared, dtypes: Dtypes, host: Host) -> None:
    """Autotune and compile what calls need, and keep what was found out."""
    if backend.device.type != "cuda":
        return
    table = table_of(key_of(backend.device, host.name, host.version))  # teaches the autotuner
    before = autotune.learned(table.key.gpu)
    backend.complete(prepared, dtypes)
    if autotune.learned(table.key.gpu) != before:
        save(table)
