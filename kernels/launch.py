"""Launch a Triton kernel many times: compiled once per set of constants, then started within microseconds.

Triton's own call binds, specializes and hashes every argument each time, 18 microseconds of it (measured). Here the
compiled kernel is looked up by a key of the caller's. What Triton would have specialized on is agreed instead:
addresses are multiples of 16 (`aligned` sees to it), and integers are declared do_not_specialize.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16


class Launcher:
    """One Triton kernel in all its compiled forms."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._compiled: dict[Hashable, Any] = {}

    def compiled(self, key: Hashable, arguments: tuple[Any, ...], constants: tuple[Any, ...], warps: int) -> Any:
        """The kernel for these constants, compiled if `key` is new. arguments: tensors and integers like those of
        the launches to come, aligned; they only tell the types."""
        kernel = self._compiled.get(key)
        if kernel is None:
            # Nothing is fused that the reference rounds on its own: mul and add stay two operations.
            options = {"num_warps": warps, "enable_fp_fusion": False}
            kernel = self._function.warmup(*arguments, *constants, grid=(1,), **options)
            kernel[(1, 1, 1)]  # loads it onto the device
            self._compiled[key] = kernel
        return kernel


def start(kernel: Any, grid: tuple[int, int], stream: int, *arguments: Any) -> None:
    """Start a compiled kernel. arguments: all of its parameters, constants too; tensors or addresses."""
    kernel.run(grid[0], grid[1], 1, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)


def stream_of(device: torch.device) -> int:
    """The CUDA stream that torch works on now, as an address."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """[rows, columns] on the current CUDA device, of no meaning yet."""
    if _EMPTY is None:
        return torch.empty(rows, columns, dtype=dtype, device="cuda")
    found: Tensor = _EMPTY((rows, columns), (columns, 1), dtype)
    return found


_EMPTY = getattr(sys.modules.get("torch._C._dynamo.guards"), "_empty_strided_cuda", None)
"""What code that Inductor writes allocates with: it takes less than half the time of torch.empty."""


def aligned(tensor: Tensor) -> Tensor:
    """The tensor contiguous and at an address that is a multiple of 16: itself, as a rule."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
