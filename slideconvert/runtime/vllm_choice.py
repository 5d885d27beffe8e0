"""What runs a linear in vLLM: vLLM's own kernels where ours cannot or do not gain, and one choice for all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..errors import InputError
from ..kernels.backends.choose import BackendChoice, Host, Settings, backends_for, choose, named
from ..kernels.backends.routed import Routed
from ..kernels.spec import LinearSpec
from .slidesparse_record import SETTINGS


class Group(Protocol):
    """vLLM's group of tensor-parallel ranks."""

    world_size: int
    rank_in_group: int

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        """What the rank `src` gives, at every rank."""


def choose_alike(spec: LinearSpec, device: torch.device, settings: Settings, host: Host, group: Group) -> BackendChoice:
    """The choice of rank 0, which alone measures. Every rank calls this for the same linears in the same order.

    ValueError, at every rank, if rank 0 cannot choose; at one rank if it cannot run what was chosen.
    """
    if group.world_size == 1:
        return choose(spec, device, settings, host)
    if group.rank_in_group == 0:
        told: tuple[str, str] = ("", "rank 0 failed")
        try:
            choice = choose(spec, device, settings, host)
            told = choice.backend.name, choice.why
        except ValueError as error:
            told = "", str(error)
            raise
        finally:
            group.broadcast_object(told)  # whatever became of it: the others wait
        return choice
    name, why = group.broadcast_object()
    if not name:
        raise ValueError(why)
    backend, family = named(name, spec, device, host), backends_for(type(spec), host)
    for way in backend.route.ways if isinstance(backend, Routed) else (name,):
        if refusal := family[way].refusal(spec, device):
            raise ValueError(f"rank 0 chose {name}, rank {group.rank_in_group} cannot run it: {refusal}")
    return BackendChoice(backend, why)


def obstacle(name: str, specs: Sequence[LinearSpec], scheme: str, cuts: Sequence[slice]) -> str:
    """Why our backends cannot run a (fused) linear and vLLM's dense kernels do, with the way out; "" if ours can.

    scheme: the name of vLLM's scheme if it is no W8A8, else "". cuts: the columns of every rank: what one
    rank cannot run, none does. InputError if neither can.
    """
    spec, ranks = specs[0], len(cuts)
    patterns = sorted({spec.pattern for spec in specs})
    if spec.plain and len(patterns) > 1:
        return f"the linears fused in it have patterns {', '.join(patterns)}; convert with one pattern for all"
    if spec.plain and scheme:
        return f"vLLM runs this scheme as {scheme} on this device"
    misfit = next((found for columns in cuts if (found := spec.misfit(columns))), None)
    if misfit is None:
        return ""
    reason, other = misfit
    what = (
        f"tensor parallelism over {ranks} ranks cuts its K = {spec.columns} columns into "
        f"{cuts[0].stop - cuts[0].start}, {reason}"
    )
    if spec.plain:
        return f"{what}; use fewer ranks, or {other}"
    raise InputError(f"{name}: {what}", hint=f"use fewer ranks (--tensor-parallel-size), or {other}")


def refused(name: str, error: ValueError) -> InputError:
    """The refusal of a backend that was asked for, as one of a linear."""
    return InputError(f"{name}: {error}", hint=f"set the backend in {SETTINGS} to auto")
