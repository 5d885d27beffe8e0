"""Sparse GEMM over packed windows, the specification: unpack, multiply, scale.

The sum runs in float64, which holds every INT8 product sum exactly (K' * 127**2 < 2**53), so INT8 results are
those of integer arithmetic; the scales and the bias are applied in float32.
"""

import torch
from torch import Tensor


def unpack(values: Tensor, meta: Tensor) -> Tensor:
    """values [N, K'/2], meta [N, K'/8] uint8 -> slid weight [N, K'] of the dtype of `values`.

    ValueError if two positions of a window are not ascending and distinct: the metadata is damaged.
    """
    rows = values.shape[0]
    positions = torch.stack([(meta >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).view(rows, -1, 2).long()
    if not (positions[..., 0] < positions[..., 1]).all():
        raise ValueError("a window's two positions are not ascending and distinct")
    raw = values.view(torch.int8).view(rows, -1, 2)
    slid = torch.zeros(rows, raw.shape[1], 4, dtype=torch.int8, device=values.device)
    return slid.scatter_(-1, positions, raw).view(rows, -1).view(values.dtype)


def sparse_gemm(
    codes: Tensor, scale: Tensor, values: Tensor, meta: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """codes [..., K'], scale [..., 1], weight_scale [N, 1], bias [N] -> [..., N] float32.

    out = (codes @ slid.T) * scale * weight_scale + bias
    """
    out = (codes.double() @ unpack(values, meta).double().T).float() * scale * weight_scale.float().view(-1)
    return out if bias is None else out + bias.float()
