"""native.c, built on first use with the C compiler that Triton needs as well, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
from ctypes import c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from .. import cache as user_cache

SOURCE = Path(__file__).with_name("native.c")
COMPILERS = ("cc", "gcc", "clang")

logger = logging.getLogger("slidesparse")


class Settled(ctypes.Structure):
    """The struct of native.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("launch", "matmul", "handle", "plan", "lift", "dequant")),
        *((name, c_uint64) for name in ("scale", "sums", "workspace")),
        *(
            (name, c_uint32)
            for name in (
                "rows", "lift_threads", "lift_shared", "dequant_threads", "dequant_shared", "dequant_tokens",
                "dequant_blocks",
            )
        ),
    )  # fmt: skip


@cache
def entry() -> Any:
    """slidesparse_linear as a ctypes function; None, with a warning in the log, if it cannot be built."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("native.c could not be built (%s): every call of a sparse linear takes longer", error)
        return None
    function = library.slidesparse_linear
    function.argtypes = [c_void_p, c_int32, *[c_void_p] * 7]
    function.restype = c_int
    return function


@cache
def launch_address() -> int:
    """The address of cuLaunchKernel."""
    driver = ctypes.CDLL("libcuda.so.1")
    address = ctypes.cast(driver.cuLaunchKernel, c_void_p).value
    assert address is not None
    return address


def _built() -> Path:
    """The shared library, from the user's cache; in a private folder if that cannot be used."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    text = SOURCE.read_bytes()
    name = f"native-{hashlib.sha256(text + platform.machine().encode()).hexdigest()[:16]}.so"
    if user_cache.read_code(name) is not None and (kept := user_cache.trusted(name)):
        return kept
    if compiler is None:
        raise OSError(f"no C compiler: {', '.join(COMPILERS)}")
    made = user_cache.private() / name
    command = [compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return user_cache.write_code(name, made.read_bytes()) or made
