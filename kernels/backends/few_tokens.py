"""The product of few tokens as a way: of sparse weights in an order of its own, of dense codes as others read them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..few_tokens.division import MOST_TOKENS
from ..few_tokens.kernel import FewTokens, refusal
from ..nvrtc import missing
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from .base import Dtypes, Prepared
from .cuda import CudaBackend
from .dense import DenseCodes


class _Few(CudaBackend):
    """Both ways; dense: whether the weight is dense codes."""

    dense: ClassVar[bool]
    most_tokens = MOST_TOKENS
    operations: ClassVar[tuple[str, ...]] = ("few_tokens", "device.cuh", "metadata.cuh", "quantize.cuh")

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._op = FewTokens(spec, self.device, dense=self.dense)

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        return refusal(spec, torch.cuda.get_device_capability(device), dense=cls.dense) or missing()

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        with torch.cuda.device(self.device):
            self._op.load(dtypes.x, dtypes.bias)

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return self.by_rows(self._op, x, prepared, bias)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        if tokens > MOST_TOKENS:
            return None
        found = self._op.operand(tokens)
        return found, found.rows(tokens)

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return self._op.of_codes(codes, scale, prepared, bias, dtype)


class FewSparse(_Few):
    """Fragments of the sparse operand."""

    name = "few_sparse"
    runs = SlideSpec
    form = "fragments"
    dense = False

    @classmethod
    def drawback(cls, spec: SlideSpec) -> str:
        return "" if spec.length else "2:inf doubles the columns: nothing to gain"

    @property
    def nbytes(self) -> int:
        return self._op.nbytes

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """Fragments, uint8; scale [N]."""
        return self._op.prepare(weight)

    def weight(self, prepared: Prepared) -> SlideWeight:
        fragments, scale = prepared
        return self._op.weight(fragments, scale)


class FewDense(_Few, DenseCodes):
    """Dense codes [N, K] in rows, where they lie."""

    name = "few_dense"
    dense = True
