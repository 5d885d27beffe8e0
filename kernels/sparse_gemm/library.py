"""cuSPARSELt through ctypes: the library that torch's CUDA wheels bring along; nothing to build.

Only what a 2:4 weight times dense activations needs: compress a weight, plan a product, run it. Layout, for
slid [N, K'] row-major and codes [R, K'] row-major:

    D [N, R] column-major = A [N, K'] row-major, structured  ·  B [K', R] column-major

so that D lies in memory as [R, N] row-major. Every call's status is checked; errors carry the library's words.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from ctypes import byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

SONAME = "libcusparseLt.so.0"
OPAQUE_BYTES = 16384
"""Room for any of the library's opaque structures; they had 512 to 11024 bytes in the versions so far."""
ALIGNMENT = 16
ROW_ORDER, COLUMN_ORDER = 2, 1  # cusparseOrder_t
NO_TRANSPOSE = 0
SPARSITY_50 = 0
CONFIG_ID, CONFIG_MAX_ID = 0, 1  # cusparseLtMatmulAlgAttribute_t
COMPUTE_32I, COMPUTE_32F = 0, 2
CUDA_TYPES = {torch.int8: 3, torch.int32: 10, torch.float32: 0, torch.bfloat16: 14, torch.float8_e4m3fn: 28}


class LibraryError(RuntimeError):
    """cuSPARSELt refused or failed."""


def opaque() -> Any:
    return ctypes.create_string_buffer(OPAQUE_BYTES)


@cache
def load() -> Any:
    """The library, its functions typed. LibraryError, with the paths that were tried, if there is none."""
    places = [SONAME]  # torch has loaded it already where it was built with it
    package = importlib.util.find_spec("nvidia.cusparselt") if importlib.util.find_spec("nvidia") else None
    for folder in package.submodule_search_locations or () if package else ():
        places.append(str(Path(folder) / "lib" / SONAME))
    for place in places:
        try:
            library = ctypes.CDLL(place)
        except OSError:
            continue
        library.cusparseLtGetErrorString.restype = c_char_p
        library.cusparseLtMatmul.argtypes = [c_void_p] * 10 + [c_int32]
        return library
    raise LibraryError(f"cuSPARSELt not found ({', '.join(places)}): pip install nvidia-cusparselt-cu13 (or -cu12)")


@cache
def handle(device: int) -> Any:
    """The library's handle for a CUDA device, made once."""
    made = opaque()
    with torch.cuda.device(device):
        check("cusparseLtInit", byref(made))
    return made


def version(device: int) -> str:
    number = c_int()
    check("cusparseLtGetVersion", byref(handle(device)), byref(number))
    return f"{number.value // 1000}.{number.value // 100 % 10}.{number.value % 100}"


def check(function: str, *arguments: Any) -> None:
    """Call a function of the library. LibraryError if its status is not success."""
    status = getattr(load(), function)(*arguments)
    if status:
        words = load().cusparseLtGetErrorString(status).decode()
        raise LibraryError(f"{function}: {words} (status {status})")


def weight_descriptor(device: int, rows: int, slid: int, dtype: torch.dtype) -> Any:
    """Of a structured weight [rows, slid] row-major; both multiples of 32."""
    made = opaque()
    shape = (c_int64(rows), c_int64(slid), c_int64(slid), c_uint32(ALIGNMENT), c_int(CUDA_TYPES[dtype]))
    own, order = byref(handle(device)), c_int(ROW_ORDER)
    check("cusparseLtStructuredDescriptorInit", own, byref(made), *shape, order, c_int(SPARSITY_50))
    return made


def dense_descriptor(device: int, rows: int, columns: int, dtype: torch.dtype) -> Any:
    """Of a dense matrix [rows, columns] column-major."""
    made = opaque()
    check("cusparseLtDenseDescriptorInit", byref(handle(device)), byref(made), c_int64(rows), c_int64(columns),
          c_int64(rows), c_uint32(ALIGNMENT), c_int(CUDA_TYPES[dtype]), c_int(COLUMN_ORDER))  # fmt: skip
    return made


def compress(slid: torch.Tensor) -> torch.Tensor:
    """slid [N, K'] 2:4 codes on a CUDA device, N and K' multiples of 32 -> the library's form of it, uint8 [bytes].

    LibraryError if a window holds more than two non-zeros.
    """
    device = slid.device.index or 0
    own, stream = byref(handle(device)), c_void_p(torch.cuda.current_stream(slid.device).cuda_stream)
    descriptor = byref(weight_descriptor(device, slid.shape[0], slid.shape[1], slid.dtype))
    with torch.cuda.device(device):
        invalid = torch.zeros(1, dtype=torch.int32, device=slid.device)
        check("cusparseLtSpMMAPruneCheck2", own, descriptor, c_int(1), c_int(NO_TRANSPOSE), c_void_p(slid.data_ptr()),
              c_void_p(invalid.data_ptr()), stream)  # fmt: skip
        if invalid.item():
            raise LibraryError("a window holds more than two non-zeros")
        size, buffer_size = c_size_t(), c_size_t()
        check("cusparseLtSpMMACompressedSize2", own, descriptor, byref(size), byref(buffer_size))
        prepared = torch.zeros(size.value, dtype=torch.uint8, device=slid.device)
        buffer = torch.empty(max(1, buffer_size.value), dtype=torch.uint8, device=slid.device)
        check("cusparseLtSpMMACompress2", own, descriptor, c_int(1), c_int(NO_TRANSPOSE), c_void_p(slid.data_ptr()),
              c_void_p(prepared.data_ptr()), c_void_p(buffer.data_ptr()), stream)  # fmt: skip
    return prepared


class Plan:
    """How to multiply weights of [N, K'] with R rows of codes. Holds no data; one plan serves every such layer.

    workspace: bytes that each run needs. algorithm: the library's number for its kernel.
    """

    def __init__(
        self,
        device: int,
        rows: int,
        slid: int,
        tokens: int,
        dtype: torch.dtype,
        out: torch.dtype,
        algorithm: int | None,
    ) -> None:
        self._device = device
        self._kept = {
            "weight": weight_descriptor(device, rows, slid, dtype),
            "codes": dense_descriptor(device, slid, tokens, dtype),
            "sums": dense_descriptor(device, rows, tokens, out),
            "matmul": opaque(),
            "selection": opaque(),
            "plan": opaque(),
        }
        own = byref(handle(device))
        refs = {name: byref(value) for name, value in self._kept.items()}
        compute = COMPUTE_32I if dtype == torch.int8 else COMPUTE_32F
        with torch.cuda.device(device):
            check("cusparseLtMatmulDescriptorInit", own, refs["matmul"], c_int(NO_TRANSPOSE), c_int(NO_TRANSPOSE),
                  refs["weight"], refs["codes"], refs["sums"], refs["sums"], c_int(compute))  # fmt: skip
            check("cusparseLtMatmulAlgSelectionInit", own, refs["selection"], refs["matmul"], c_int(0))
            if algorithm is not None:
                number = c_int(algorithm)
                check("cusparseLtMatmulAlgSetAttribute", own, refs["selection"], c_int(CONFIG_ID), byref(number),
                      c_size_t(4))  # fmt: skip
            check("cusparseLtMatmulPlanInit", own, refs["plan"], refs["matmul"], refs["selection"])
            size = c_size_t()
            check("cusparseLtMatmulGetWorkspace", own, refs["plan"], byref(size))
        self.workspace = size.value
        self.algorithm = algorithm
        self._own, self._refs = own, refs
        self._arguments = (own, refs["plan"], byref(c_float(1.0)), byref(c_float(0.0)))
        self._matmul = load().cusparseLtMatmul

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Addresses of cusparseLtMatmul, the handle and the plan; valid as long as the plan is kept."""
        matmul = ctypes.cast(self._matmul, c_void_p).value
        assert matmul is not None
        return matmul, ctypes.addressof(handle(self._device)), ctypes.addressof(self._kept["plan"])

    @property
    def algorithms(self) -> int:
        """How many algorithms the library has for this product."""
        number, selection = c_int(), self._refs["selection"]
        check("cusparseLtMatmulAlgGetAttribute", self._own, selection, c_int(CONFIG_MAX_ID), byref(number), c_size_t(4))
        return number.value

    def run(self, prepared: int, codes: int, sums: int, workspace: int, stream: int) -> None:
        """Start the product; all are addresses on the device, `stream` a CUDA stream's. LibraryError if refused."""
        own, plan, one, zero = self._arguments
        status = self._matmul(own, plan, one, prepared, codes, zero, sums, sums, workspace, byref(c_void_p(stream)), 1)
        if status:
            raise LibraryError(f"cusparseLtMatmul: {load().cusparseLtGetErrorString(status).decode()} ({status})")

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():  # bound above: at the end of the process, imports of this module may be unloaded
            return
        for function, name in (
            ("cusparseLtMatmulPlanDestroy", "plan"),
            ("cusparseLtMatmulAlgSelectionDestroy", "selection"),
        ):
            getattr(load(), function)(self._refs[name])
        for name in ("weight", "codes", "sums"):
            load().cusparseLtMatDescriptorDestroy(self._refs[name])
