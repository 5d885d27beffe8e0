"""Products of many tokens with sparse 8-bit weights on NVIDIA GPUs: kernel.cu or portable.cu, compiled and launched."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor

from ..few_tokens.division import ceil_div
from ..few_tokens.kernel import SINCE, WARPGROUPS, Device, FewTokens
from ..few_tokens.prepared import GROUP, Order
from ..few_tokens.produce import KINDS, OVERLAPPING_SINCE
from ..launch import aligned, empty
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from .launches import Launches, Shape, Source, module_of
from .tiles import FORMS, PORTABLE, Fitted, Form, Tiling

MOST_QUANTIZERS = 512
"""Threads of a block that quantizes a token, at most."""
MOST_HELD = 256
"""Bytes of a token that one of them can hold in registers."""
MOST_WAYS = 4096
"""Kinds of calls whose tilings and kernels are remembered."""
COLUMNS_MULTIPLE = 8
"""What K must be a multiple of: activations are read 16 bytes at a time."""


def refusal(spec: SlideSpec, capability: tuple[int, int]) -> str:
    """Why a GPU of this compute capability cannot run such a linear; "" if it can."""
    if capability < SINCE[spec.dtype]:
        return f"the product of many tokens needs compute capability {'.'.join(map(str, SINCE[spec.dtype]))}"
    if spec.columns % COLUMNS_MULTIPLE:
        return f"K = {spec.columns} is no multiple of {COLUMNS_MULTIPLE}"
    return ""


class ManyTokens:
    """Products of linears of one shape on one device. Holds no weights: `prepare` makes what a call reads, the same as
    FewTokens of a sparse weight.

    forms: of tiles, among which each number of tokens has the one that suits it; None: those of the device.
    """

    def __init__(self, spec: SlideSpec, device: torch.device, *, forms: Sequence[Form] | None = None) -> None:
        self.spec, self.device, self._forms = spec, device, forms
        self._few = FewTokens(spec, device)
        self._launches: dict[tuple[torch.dtype, torch.dtype | None, Form], Launches] = {}
        self._ways: dict[tuple[int, torch.dtype, torch.dtype | None], tuple[Tiling, Launches]] = {}

    @cached_property
    def gpu(self) -> Device:
        """ValueError if it cannot run the linear."""
        found = Device.of(self.device)
        if why := refusal(self.spec, found.capability):
            raise ValueError(f"{self.spec}: {why}")
        return found

    @cached_property
    def order(self) -> Order:
        return Order.of(self.spec.length)

    @cached_property
    def units(self) -> int:
        return self.order.units(self.spec)

    @cached_property
    def pieces(self) -> int:
        """Pieces of 16 codes of a token."""
        return self.units * self.order.unit.columns // 16

    def quantizers(self, dtype: torch.dtype) -> tuple[int, int]:
        """Threads of a block that quantizes a token, and shares of four blocks of columns that each of them holds in
        registers: as few as hold them all, or 0 if these are too many."""
        shares = ceil_div(self.pieces, self.order.windows)
        held = ceil_div(shares, MOST_QUANTIZERS)
        fits = held * 4 * self.spec.block * dtype.itemsize <= MOST_HELD
        return 32 * ceil_div(shares, 32 * held), held if fits else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the prepared weight, without the scale."""
        return self._few.nbytes

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, Tensor]:
        """Fragments, uint8; and the scale [N] float32."""
        return self._few.prepare(weight)

    def weight(self, prepared: Tensor, scale: Tensor) -> SlideWeight:
        """The weight that `prepare` was given, to the bit."""
        return self._few.weight(prepared, scale)

    @cached_property
    def forms(self) -> dict[Form, Fitted]:
        """Those that fit the device."""
        gpu = self.gpu
        forms = self._forms or (FORMS if gpu.capability == WARPGROUPS else PORTABLE)
        free, unit = gpu.shared_bytes, self.order.unit
        found = {form: form.fitted(unit, free) for form in forms if form.splits <= self.units}
        return {form: fitted for form, fitted in found.items() if fitted is not None}

    def tiling(self, tokens: int) -> Tiling:
        """How so many tokens are divided, in the form that suits them."""
        return min((self.tiled(tokens, form) for form in self.forms), key=lambda tiling: tiling.cycles)

    def tiled(self, tokens: int, form: Form) -> Tiling:
        """How so many tokens are divided in this form."""
        return Tiling(self.spec.rows, self.spec.slid, tokens, self.order.unit, form, self.gpu.processors)

    def load(self, dtype: torch.dtype, bias: torch.dtype | None = None) -> None:
        """Compile and load what calls with such activations and biases need, all at once, so that none has to: a module
        cannot be loaded while a CUDA graph is captured."""
        keys = [(dtype, bias, form) for form in self.forms if (dtype, bias, form) not in self._launches]
        if not keys:
            return
        sources = [self.quantizing(dtype), *(self.multiplying(*key) for key in keys)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source: module_of(*source, self.device), sources))  # each once
            self._launches.update(zip(keys, pool.map(lambda key: self._made(*key), keys), strict=True))

    def _made(self, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> Launches:
        overlapping = self.gpu.capability >= OVERLAPPING_SINCE
        shape = Shape(self.spec.rows, self.spec.columns, self.units, self.pieces, self.device, overlapping)
        product, shared = self.multiplying(dtype, bias, form), self.forms[form].shared_bytes
        return Launches(shape, form, self.quantizing(dtype), self.quantizers(dtype)[0], product, shared)

    def quantizing(self, dtype: torch.dtype) -> Source:
        threads, held = self.quantizers(dtype)
        constants = {
            "LENGTH": self.spec.length or 2, "X": KINDS[dtype], "FLOAT": int(self.spec.dtype != torch.int8),
            "QUANTIZERS": threads, "HELD": held, **self.order.constants,
        }  # fmt: skip
        return "quantize.cu", tuple(constants.items())

    def multiplying(self, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> Source:
        return form.source, tuple(self.constants(dtype, bias, form).items())

    def constants(self, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> dict[str, int]:
        """What the form's source is compiled with."""
        return {
            "LENGTH": self.spec.length or 2, "UNIT": self.order.unit.columns, "X": KINDS[dtype], "BIAS": KINDS[bias],
            "FLOAT": int(self.spec.dtype != torch.int8), **self.order.constants,
            **self.forms[form].constants,
        }  # fmt: skip

    @cached_property
    def operand(self) -> Operand:
        """How it reads codes. Tiles of tokens read scales whole."""
        spec, order = self.spec, self.order
        blocks, spare = GROUP if order.bounds else 1, max(form.tokens for form in self.forms)
        return Operand(spec.columns, spec.dtype, True, spec.length, blocks, order.unit.columns, spare=spare)

    def __call__(self, x: Tensor, prepared: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """x [M, K] bfloat16, float16 or float32, on the current device; bias [N] -> [M, N] like x."""
        tokens = x.shape[0]
        out = empty(tokens, self.spec.rows, x.dtype)
        if tokens:
            tiling, launches = self._way(tokens, x.dtype, bias)
            codes = empty(tokens, self.pieces * 16, torch.uint8)
            # Tiles of tokens read it whole.
            scale = empty(tiling.token_tiles, tiling.form.tokens, torch.float32)
            launches.start(tiling, aligned(x), (codes, scale), prepared, bias, out)
        return out

    def of_codes(
        self, codes: Tensor, scale: Tensor, prepared: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """codes of the operand, scale [M, 1] float32 as it asks for, at a multiple of 16, on the current device; bias
        [N] -> [M, N] of `dtype`."""
        tokens = scale.shape[0]
        out = empty(tokens, self.spec.rows, dtype)
        if tokens:
            tiling, launches = self._way(tokens, dtype, bias)
            launches.start(tiling, None, (aligned(codes), scale), prepared, bias, out)
        return out

    def _way(self, tokens: int, dtype: torch.dtype, bias: Tensor | None) -> tuple[Tiling, Launches]:
        """How so many tokens are divided, and what multiplies them: of many calls the host does no more than this."""
        key = (tokens, dtype, None if bias is None else bias.dtype)
        found = self._ways.get(key)
        if found is None:
            if len(self._ways) >= MOST_WAYS:
                self._ways.clear()
            tiling = self.tiling(tokens)
            kind = (dtype, key[2], tiling.form)
            if kind not in self._launches:
                self._launches[kind] = self._made(*kind)
            found = self._ways[key] = tiling, self._launches[kind]
        return found
