"""Check the code that travels with a checkpoint whenever one is loaded.

Where slideconvert is installed its own kernels run, never those of a checkpoint; changed ones are refused all the same,
because whoever runs this checkpoint without slideconvert would run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from .slidesparse_record import REINSTALL_HINT, bundle_faults


def check_bundle(folder: Path, hashes: Mapping[str, str]) -> None:
    """InputError if code in the checkpoint `folder` is changed, missing or not listed in its record's kernels."""
    for fault in bundle_faults(folder, hashes):
        raise InputError(f"{folder}: {fault}", hint=REINSTALL_HINT)
