"""Load compiled CUDA C++ and launch it, through the driver alone: without torch's help, in microseconds."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from .nvrtc import architecture, machine_code

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
PREFERRED_CARVEOUT, LARGEST = 9, 100
"""CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent."""
TRITONS_OWN = 4
"""Parameters that Triton adds behind a kernel's own, at most: two since 3.4. The driver reads as many as there are."""
PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


class DriverError(RuntimeError):
    """The driver refused a kernel, memory or a launch."""


@functools.cache
def driver() -> Any:
    """NVIDIA's driver. OSError if there is none."""
    # PyDLL: calls keep the interpreter's lock. A launch is over in microseconds, giving the lock back costs more.
    found = ctypes.PyDLL("libcuda.so.1")
    found.cuLaunchKernelEx.argtypes = [c_void_p] * 4
    return found


def checked(status: int, what: str) -> None:
    """DriverError unless the driver's status is 0. what: was done, for the message."""
    if status:
        text = c_char_p()
        driver().cuGetErrorString(status, byref(text))
        raise DriverError(f"the driver failed at {what}: {(text.value or b'unknown').decode()} ({status})")


def allocate(nbytes: int) -> int:
    """The address of memory on the current device, out of reach of torch's allocators. DriverError if there is none."""
    torch._C._cuda_setDevice(torch.cuda.current_device())  # makes its context this thread's, if it is none yet
    address = c_uint64()
    checked(driver().cuMemAlloc_v2(byref(address), c_size_t(nbytes)), f"allocating {nbytes} bytes")
    return address.value


def fill(address: int, value: int, count: int) -> None:
    """Set so many int32 numbers on the current device, on its default stream."""
    checked(driver().cuMemsetD32_v2(c_uint64(address), c_uint(value), c_size_t(count)), f"filling {4 * count} bytes")


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
            checked(driver().cuModuleLoadData(byref(self._module), c_char_p(code)), f"loading {source.name}")

    def kernel(self, name: str, shared: int = 0) -> Kernel:
        """shared: bytes of dynamic shared memory of its launches.

        Every kernel divides a multiprocessor's memory alike, the largest part shared: of two that divide it in
        different ways, the second cannot begin there before the first has left.
        """
        function = c_void_p()
        checked(driver().cuModuleGetFunction(byref(function), self._module, name.encode()), name)
        checked(driver().cuFuncSetAttribute(function, PREFERRED_CARVEOUT, LARGEST), f"{name}: its shared memory")
        with self._lock:  # the limit is the function's, and others may have asked for more
            if shared > self._shared.get(name, 0):
                checked(driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), f"{name}: {shared} bytes")
                self._shared[name] = shared
        if load := getattr(driver(), "cuFuncLoad", None):  # since CUDA 12.4: else at the first launch
            checked(load(function), f"loading {name}")
        return Kernel(name, function, shared)


class Kernel:
    """A function with one parameter, a struct that is passed by value."""

    def __init__(self, name: str, function: c_void_p, shared: int) -> None:
        self.name, self.function, self.shared = name, function.value, shared


class Launch:
    """A launch that is made again and again: what does not change is settled. Not to be used by two threads at once.

    argument: the kernel's parameter; its fields may be set between calls. overlapping: the kernel may begin while the
    one before it in the stream still runs, and waits for it by itself (griddepcontrol, from compute capability 9 on).
    apart: every field is a parameter of its own, as Triton's kernels take them; what Triton adds behind them is null.
    """

    def __init__(
        self,
        kernel: Kernel,
        blocks: int | tuple[int, int],
        threads: int,
        argument: ctypes.Structure,
        *,
        overlapping: bool = False,
        apart: bool = False,
    ) -> None:
        self.argument, self._kernel = argument, kernel
        self._attribute = _Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)
        grid = blocks if isinstance(blocks, tuple) else (blocks, 1)
        self._config = _Config(
            *grid, 1, threads, 1, 1, kernel.shared, 0, ctypes.addressof(self._attribute), int(overlapping)
        )
        self._null, start = c_uint64(), ctypes.addressof(argument)
        fields = [start + getattr(type(argument), name).offset for name, *_ in argument._fields_] if apart else [start]
        added = [ctypes.addressof(self._null)] * (TRITONS_OWN if apart else 0)
        self._parameters = (c_void_p * len(fields + added))(*fields, *added)
        self._stream = 0
        self._words = (ctypes.addressof(self._config), kernel.function, ctypes.addressof(self._parameters), None)
        self._launch = driver().cuLaunchKernelEx

    def resize(self, blocks: int) -> None:
        """So many blocks from now on, in one dimension."""
        self._config.grid_x = blocks

    def start(self, stream: int) -> None:
        """Start on this stream of the current device."""
        if stream != self._stream:
            self._config.stream = self._stream = stream
        status = self._launch(*self._words)
        if status:
            checked(status, f"launching {self._kernel.name}")


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
