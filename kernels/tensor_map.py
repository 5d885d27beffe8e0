"""Descriptions of matrices for the copy engine of compute capability 9.0 (CUtensorMap)."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p

from .driver import checked, driver

WORDS = 16
UINT8, NO_INTERLEAVE, SWIZZLE_128, PROMOTE_256, ZEROS_OUTSIDE = 0, 0, 3, 3, 0
"""CU_TENSOR_MAP_DATA_TYPE_UINT8, …_INTERLEAVE_NONE, …_SWIZZLE_128B, …_L2_PROMOTION_L2_256B, …_OOB_FILL_NONE."""


class TensorMap(ctypes.Structure):
    """CUtensorMap: opaque; part of a kernel's parameter, at a multiple of 64 bytes."""

    _fields_ = (("word", c_uint64 * WORDS),)


def bytes_map(address: int, rows: int, columns: int, box_rows: int) -> TensorMap:
    """Of a matrix of bytes [rows, columns] at a multiple of 16, in boxes of [box_rows, 128], swizzled by 128 bytes.

    columns: a multiple of 16. DriverError if the driver refuses it.
    """
    # The driver wants its struct at a multiple of 64, which ctypes does not promise.
    room = (ctypes.c_uint8 * (ctypes.sizeof(TensorMap) + 63))()
    start = -ctypes.addressof(room) % 64
    two_sizes, one_stride = (c_uint64 * 2)(columns, rows), (c_uint64 * 1)(columns)
    two_box, two_steps = (c_uint * 2)(128, box_rows), (c_uint * 2)(1, 1)
    status = driver().cuTensorMapEncodeTiled(
        c_void_p(ctypes.addressof(room) + start), c_int(UINT8), c_uint(2), c_void_p(address), byref(two_sizes),
        byref(one_stride), byref(two_box), byref(two_steps), c_int(NO_INTERLEAVE), c_int(SWIZZLE_128),
        c_int(PROMOTE_256), c_int(ZEROS_OUTSIDE),
    )  # fmt: skip
    checked(status, f"describing {rows} x {columns} bytes")
    return TensorMap.from_buffer_copy(room, start)
