"""The backend of grouped weights for NVIDIA GPUs: group_gemm/kernel.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..group_spec import GroupSpec
from ..groups import Weight
from ..nvrtc import missing
from .base import Dtypes, Prepared
from .cuda import CudaBackend

GROUPS_SINCE = (8, 0)
"""Compute capability from which GPUs have what the kernel needs."""


class GroupGemmBackend(CudaBackend):
    """Products with the groups that are stored."""

    name = "group_gemm"
    operations = ("group_gemm", "device.cuh")
    runs = GroupSpec
    form = "group_gemm"
    tensors = 4

    def __init__(self, spec: GroupSpec, device: torch.device) -> None:
        # Imported here: it is of use on GPUs alone.
        from ..group_gemm.kernel import GroupGemm

        super().__init__(spec, device)
        dense = spec.layout == "dense"  # every group is stored, whatever the pattern keeps
        self._op = GroupGemm(replace(spec, kept=spec.whole) if dense else spec, self.device)

    @classmethod
    def refusal(cls, spec: GroupSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if torch.cuda.get_device_capability(device) < GROUPS_SINCE:
            wanted = ".".join(map(str, GROUPS_SINCE))
            return f"{torch.cuda.get_device_name(device)} is older than compute capability {wanted}"
        return missing(torch.cuda.get_device_capability(device))

    def prepare(self, weight: Weight) -> tuple[Tensor, ...]:
        with torch.cuda.device(self.device):
            return self._op.prepare(weight)

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        with torch.cuda.device(self.device):
            self._op.load(prepared, dtypes.x, dtypes.bias)

    def weight(self, prepared: Prepared) -> Weight:
        return self._op.weight(prepared)

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return self.by_rows(self._op, x, prepared, bias)
