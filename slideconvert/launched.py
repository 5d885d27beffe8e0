"""The place that torchrun or accelerate gives a process among those of its job, read from the environment."""

from __future__ import annotations

import os

WORLD, RANK, LOCAL = "WORLD_SIZE", "RANK", "LOCAL_RANK"
PLACE = (RANK, WORLD, LOCAL, "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for each process."""


def several() -> bool:
    """Whether this process is one of several."""
    return os.environ.get(WORLD, "1") != "1"


def missing() -> list[str]:
    """The variables of PLACE that are not set."""
    return [name for name in PLACE if name not in os.environ]


def rank() -> int:
    """The number of this process in the job; 0 if it is alone."""
    return int(os.environ.get(RANK, "0")) if several() else 0


def local_rank() -> int | None:
    """The number of this process on its host; None if it is alone in the job."""
    return int(os.environ.get(LOCAL, "0")) if several() else None
