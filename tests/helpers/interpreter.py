"""Triton's interpreter with the roundings of a GPU.

Its own conversion to FP8 loses the carry of a mantissa and cuts subnormal numbers off, and the one to bfloat16 cuts all
of them off: here torch converts. Its multiply-adds round twice: here once, in float64, which holds the exact product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH = {
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def convert(numbers: Any, source: Any, target: Any, _: Any) -> Any:
    """numbers: of dtype `source`, in whatever NumPy holds them -> of dtype `target`, as unsigned integers."""
    wide = INTEGERS[TORCH[source].itemsize]
    bits = torch.from_numpy(np.ascontiguousarray(numbers).view(np.dtype(f"i{wide.itemsize}")).copy())
    found = bits.view(TORCH[source]).to(TORCH[target])
    out = found.view(INTEGERS[found.itemsize]).numpy()
    return out.view(np.dtype(f"u{found.itemsize}")).reshape(np.shape(numbers))


def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    found = x.data.astype(np.float64) * y.data + z.data
    return interpreter.TensorHandle(found.astype(z.data.dtype), z.dtype.scalar)


def install() -> None:
    np.seterr(over="ignore")  # an exponential may be infinite, as on a GPU
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_fma = fma
