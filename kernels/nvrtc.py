"""Compile CUDA C++ where it runs, by the NVRTC of torch's CUDA wheels (driver.py loads and launches it).

A kernel is compiled once for a device's architecture and a set of constants; the machine code is kept in the user's
cache, under the hash of all that went into it. Nothing here happens before the first call.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from . import cache

HEADERS = Path(__file__).parent
"""Where headers lie that sources of several folders include."""
NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class NvrtcError(RuntimeError):
    """NVRTC is missing, a kernel does not compile, or the driver refused it."""


def missing(capability: tuple[int, int] | None = None) -> str:
    """Why nothing can be compiled here, or for GPUs of this compute capability; "" if it can."""
    try:
        library()
        if capability is not None:
            architecture(capability)
    except NvrtcError as error:
        return str(error)
    return ""


@functools.cache
def library() -> Any:
    """NVRTC. NvrtcError if it is not found."""
    tried = [str(path) for folder in _folders() for path in sorted(folder.glob("libnvrtc.so*"))] + list(NAMES)
    for name in tried:
        try:
            # Its builtins lie beside it, but it asks for them by name alone: by then they are loaded.
            for builtins in Path(name).parent.glob("libnvrtc-builtins.so*") if "/" in name else ():
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NvrtcError(f"NVRTC was not found (pip install nvidia-cuda-nvrtc); tried {', '.join(tried)}")


def _folders() -> list[Path]:
    """Where wheels put it: nvidia/cu13/lib and the like, and torch/lib."""
    found = []
    for package, pattern in (("nvidia", "*/lib"), ("torch", "lib")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            found += sorted(Path(root).glob(pattern))
    return found


def _version() -> tuple[int, int]:
    major, minor = c_int(), c_int()
    _checked(library().nvrtcVersion(byref(major), byref(minor)), "nvrtcVersion")
    return major.value, minor.value


def architecture(capability: tuple[int, int]) -> str:
    """sm_90 for (9, 0); for a GPU newer than NVRTC the newest that it knows, as PTX for the driver to compile."""
    count = c_int()
    _checked(library().nvrtcGetNumSupportedArchs(byref(count)), "nvrtcGetNumSupportedArchs")
    known = (c_int * count.value)()
    _checked(library().nvrtcGetSupportedArchs(known), "nvrtcGetSupportedArchs")
    wanted = capability[0] * 10 + capability[1]
    if wanted in known:
        return f"sm_{wanted}"
    older = [number for number in known if number < wanted]
    if not older:
        raise NvrtcError(f"NVRTC {_version()} knows no architecture as old as sm_{wanted}")
    return f"compute_{max(older)}"


def machine_code(source: Path, constants: dict[str, int], target: str) -> bytes:
    """The source compiled for `target` (sm_90; PTX for compute_90) with these constants, from the cache if it is
    there. NvrtcError with the compiler's log if it does not compile."""
    text = source.read_bytes()
    beside = (*sorted(HEADERS.glob("*.cuh")), *sorted(source.parent.glob("*.cuh")))
    headers = {path.name: path.read_bytes() for path in beside}
    options = [f"--gpu-architecture={target}", "--std=c++17", *(f"-D{key}={value}" for key, value in constants.items())]
    identity = "\0".join([*options, str(_version())]).encode() + b"\0".join([text, *headers.values()])
    name = f"{source.parent.name}-{hashlib.sha256(identity).hexdigest()[:24]}.cubin"
    kept = cache.read_code(name)
    if kept is None:
        kept = _compiled(text, source.name, headers, options, ptx=target.startswith("compute"))
        cache.write_code(name, kept)
    return kept


def _compiled(text: bytes, name: str, headers: dict[str, bytes], options: list[str], *, ptx: bool) -> bytes:
    nvrtc, program = library(), c_void_p()
    texts = (c_char_p * len(headers))(*headers.values())
    names = (c_char_p * len(headers))(*(header.encode() for header in headers))
    made = nvrtc.nvrtcCreateProgram(byref(program), c_char_p(text), name.encode(), len(headers), texts, names)
    _checked(made, "nvrtcCreateProgram")
    try:
        words = (c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            log = _got(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise NvrtcError(f"{name} does not compile ({' '.join(options)}):\n{log.decode(errors='replace')}")
        if ptx:
            return _got(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        return _got(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def _got(size_of: Any, read: Any, program: c_void_p) -> bytes:
    size = c_size_t()
    _checked(size_of(program, byref(size)), "the size of a result")
    buffer = ctypes.create_string_buffer(size.value)
    _checked(read(program, buffer), "a result")
    return buffer.raw


def _checked(status: int, what: str) -> None:
    if status:
        raise NvrtcError(f"NVRTC failed with status {status} at {what}")
