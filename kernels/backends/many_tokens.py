"""The product of many tokens as a way: of the fragments that the product of few tokens reads too."""

from __future__ import annotations

import torch
from torch import Tensor

from ..many_tokens.kernel import ManyTokens, refusal
from ..nvrtc import missing
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from .base import Dtypes, Prepared
from .cuda import CudaBackend
from .few_tokens import FewSparse


class ManySparse(CudaBackend):
    """Fragments of the sparse operand."""

    name = "many_sparse"
    runs = SlideSpec
    form = FewSparse.form
    operations = ("many_tokens", *FewSparse.operations, "driver.py", "tensor_map.py")

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._op = ManyTokens(spec, self.device)

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        return refusal(spec, torch.cuda.get_device_capability(device)) or missing()

    @classmethod
    def drawback(cls, spec: SlideSpec) -> str:
        return FewSparse.drawback(spec)

    @property
    def nbytes(self) -> int:
        return self._op.nbytes

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        with torch.cuda.device(self.device):
            self._op.load(dtypes.x, dtypes.bias)

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """Fragments, uint8; scale [N]."""
        return self._op.prepare(weight)

    def weight(self, prepared: Prepared) -> SlideWeight:
        fragments, scale = prepared
        return self._op.weight(fragments, scale)

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return self.by_rows(self._op, x, prepared, bias)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return self._op.operand, tokens

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return self._op.of_codes(codes, scale, prepared, bias, dtype)
