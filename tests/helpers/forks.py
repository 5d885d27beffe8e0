"""Forks in which torch works."""

from __future__ import annotations

import os

import torch

ATTEMPTS = 3


def fork() -> int:
    """os.fork, with torch on one thread in the child.

    The first call of a fork that sets torch's threads renews its thread pool. In about one fork of 10,000 the pool is
    missing then, and stays so, whatever else the process does (torch 2.13, LOG.md): such a child is given up.
    """
    for _ in range(ATTEMPTS):
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(told)
            try:
                torch.set_num_threads(1)
            except RuntimeError:
                os._exit(1)
            os.write(tell, b"x")
            os.close(tell)
            return 0
        os.close(tell)
        sound = os.read(told, 1)
        os.close(told)
        if sound:
            return pid
        os.waitpid(pid, 0)
    raise RuntimeError(f"torch failed in {ATTEMPTS} forks, one after another")
