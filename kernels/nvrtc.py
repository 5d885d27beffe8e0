"""Compile CUDA C++ where it runs, by the NVRTC of torch's CUDA wheels, and launch it without torch's help.

A kernel is compiled once for a device's architecture and a set of constants; the machine code is kept in the user's
cache, under the hash of all that went into it. Nothing here happens before the first call.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from . import cache

HEADERS = Path(__file__).parent
"""Where headers lie that sources of several folders include."""
NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
PREFERRED_CARVEOUT, LARGEST = 9, 100
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent."""
PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


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


@functools.cache
def _driver() -> Any:
    # PyDLL: calls keep the interpreter's lock. A launch is over in microseconds, giving the lock back costs more.
    driver = ctypes.PyDLL("libcuda.so.1")
    driver.cuLaunchKernelEx.argtypes = [c_void_p] * 4
    return driver


def _driven(status: int, what: str) -> None:
    if status:
        text = c_char_p()
        _driver().cuGetErrorString(status, byref(text))
        raise NvrtcError(f"the driver failed at {what}: {(text.value or b'unknown').decode()} ({status})")


def allocate(nbytes: int) -> int:
    """The address of memory on the current device, out of reach of torch's allocators. NvrtcError if there is none."""
    torch._C._cuda_setDevice(torch.cuda.current_device())  # makes its context this thread's, if it is none yet
    address = c_uint64()
    _driven(_driver().cuMemAlloc_v2(byref(address), c_size_t(nbytes)), f"allocating {nbytes} bytes")
    return address.value


def fill(address: int, value: int, count: int) -> None:
    """Set so many int32 numbers on the current device, on its default stream."""
    _driven(_driver().cuMemsetD32_v2(c_uint64(address), c_uint(value), c_size_t(count)), f"filling {4 * count} bytes")


class Module:
    """A source with its constants, compiled for and loaded onto one device. It stays there.

    specific: the source uses instructions that only this architecture has (sm_90a).
    """

    def __init__(
        self, source: Path, constants: dict[str, int], device: torch.device, *, specific: bool = False
    ) -> None:
        target = architecture(torch.cuda.get_device_capability(device))
        code = machine_code(source, constants, f"{target}a" if specific else target)
        self._module = c_void_p()
        self._lock, self._shared = Lock(), dict[str, int]()
        with torch.cuda.device(device):
            torch._C._cuda_setDevice(torch.cuda.current_device())  # makes its context this thread's, if it is none yet
            _driven(_driver().cuModuleLoadData(byref(self._module), c_char_p(code)), f"loading {source.name}")

    def kernel(self, name: str, shared: int = 0) -> Kernel:
        """shared: bytes of dynamic shared memory of its launches.

        Every kernel divides a multiprocessor's memory alike, the largest part shared: of two that divide it in
        different ways, the second cannot begin there before the first has left.
        """
        function = c_void_p()
        _driven(_driver().cuModuleGetFunction(byref(function), self._module, name.encode()), name)
        _driven(_driver().cuFuncSetAttribute(function, PREFERRED_CARVEOUT, LARGEST), f"{name}: its shared memory")
        with self._lock:  # the limit is the function's, and others may have asked for more
            if shared > self._shared.get(name, 0):
                _driven(_driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), f"{name}: {shared} bytes")
                self._shared[name] = shared
        if load := getattr(_driver(), "cuFuncLoad", None):  # since CUDA 12.4: else at the first launch
            _driven(load(function), f"loading {name}")
        return Kernel(name, function, shared)


class Kernel:
    """A function with one parameter, a struct that is passed by value."""

    def __init__(self, name: str, function: c_void_p, shared: int) -> None:
        self.name, self.function, self.shared = name, function.value, shared


class Launch:
    """A launch that is made again and again: what does not change is settled. Not to be used by two threads at once.

    argument: the kernel's parameter; its fields may be set between calls. overlapping: the kernel may begin while the
    one before it in the stream still runs, and waits for it by itself (griddepcontrol, from compute capability 9 on).
    """

    def __init__(
        self,
        kernel: Kernel,
        blocks: int | tuple[int, int],
        threads: int,
        argument: ctypes.Structure,
        *,
        overlapping: bool = False,
    ) -> None:
        self.argument, self._kernel = argument, kernel
        self._attribute = _Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)
        grid = blocks if isinstance(blocks, tuple) else (blocks, 1)
        self._config = _Config(
            *grid, 1, threads, 1, 1, kernel.shared, 0, ctypes.addressof(self._attribute), int(overlapping)
        )
        self._parameters = (c_void_p * 1)(ctypes.addressof(argument))
        self._stream = 0
        self._words = (ctypes.addressof(self._config), kernel.function, ctypes.addressof(self._parameters), None)
        self._launch = _driver().cuLaunchKernelEx

    def start(self, stream: int) -> None:
        """Start on this stream of the current device."""
        if stream != self._stream:
            self._config.stream = self._stream = stream
        status = self._launch(*self._words)
        if status:
            _driven(status, f"launching {self._kernel.name}")


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("name", c_int), ("padding", c_int), ("value", c_int), ("rest", c_int * 15))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((name, c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        *((name, c_void_p) for name in ("stream", "attributes")),
        ("count", c_uint),
    )
