"""Products with weights quantized by groups, of which some may be absent: the specification.

    out[m, n] = bias[n] + sum over the groups g of row n: scale[n, g] * sum over their columns k: x[m, k] * codes[n, k]

Float activations: everything in float32. INT8 ones: quantized per token (kernels/quantize), the inner sums exact
integers, then the scales of groups, of the token, and the bias, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..group_spec import GroupSpec
from ..groups import Weight, decode
from ..quantize.reference import quantize


def group_gemm(x: Tensor, groups: Weight, bias: Tensor | None, spec: GroupSpec) -> Tensor:
    """x [M, K] bfloat16, float16 or float32; bias [N] -> [M, N] like x. ValueError for damaged groups."""
    codes, scale = decode(groups, spec)
    by_group = codes.float().view(spec.rows, spec.across, spec.size)
    scale = scale.float()
    if spec.activation_bits == 16:
        out = x.float() @ (by_group * scale[..., None]).flatten(1).T
    else:
        whole, by_token = quantize(x, torch.int8)
        tokens = whole.float().view(-1, spec.across, spec.size)
        out = torch.zeros(len(x), spec.rows, dtype=torch.float32, device=x.device)
        for group in range(spec.across):  # at most 128 * 127 * 255: exact in float32
            out += tokens[:, group] @ by_group[:, group].T * scale[:, group]
        out = out * by_token
    return (out if bias is None else out + bias.float()).to(x.dtype)
