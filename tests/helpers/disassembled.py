"""Machine code in words, by the disassembler that Triton carries."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

TARGETS = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_89": (8, 9), "sm_90": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0)}
"""What NVRTC compiles for, and its compute capability: the generations that our CUDA kernels are for."""


def cuobjdump() -> Path | None:
    """None if it is not here."""
    triton = importlib.util.find_spec("triton")
    found = Path(triton.origin or "").parent / "backends/nvidia/bin/cuobjdump" if triton else None
    return found if found and found.exists() else None


def instructions(code: bytes, function: str, folder: Path) -> str:
    """Of a function in machine code of NVRTC; the folder is for a file of it."""
    kept = folder / "code.cubin"
    kept.write_bytes(code)
    listed = subprocess.run([str(cuobjdump()), "-sass", str(kept)], capture_output=True, text=True, check=True)
    return listed.stdout.partition(f"Function : {function}")[2].partition("Function :")[0]
