"""Ways to run a linear whose weights are quantized by groups, and the choice among them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends.cuda import indexed
from .groups import GroupSpec, Weight, decode, weight_of
from .nvrtc import missing
from .quantize.reference import quantize

NAMESPACE = __name__.replace(".", "_")
"""Of the operator: the kernels of a package and those of a checkpoint may live in one process."""
SINCE = (8, 0)

logger = logging.getLogger("slidesparse")


class GroupBackend:
    """One way to run linears of one shape and layout on one device. The operand is passed to every call."""

    name = ""

    def __init__(self, spec: GroupSpec, layout: str, device: torch.device) -> None:
        self.spec, self.layout, self.device = spec, layout, device

    @classmethod
    def refusal(cls, spec: GroupSpec, device: torch.device) -> str:
        """Why this backend cannot run such a linear there; "" if it can."""
        raise NotImplementedError

    def prepare(self, weight: Weight) -> Tensor:
        """The operand, uint8, on `device`. ValueError if the weight is damaged."""
        raise NotImplementedError

    def weight(self, operand: Tensor) -> Weight:
        """What `prepare` was given, to the bit."""
        raise NotImplementedError

    def __call__(self, x: Tensor, operand: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] float16, bfloat16 or float32; bias [N] -> [..., N] like x. ValueError if x is elsewhere."""
        raise NotImplementedError


class GroupCuda(GroupBackend):
    """group_gemm/kernel.cu. One object serves all linears of a shape: get it from `shared`."""

    name = "group_gemm"

    def __init__(self, spec: GroupSpec, layout: str, device: torch.device) -> None:
        # Imported here: it is of use on GPUs alone.
        from .group_gemm.kernel import GroupGemm

        super().__init__(spec, layout, indexed(device))
        self._op = GroupGemm(spec, self.device, dense=layout == "dense")

    @classmethod
    def refusal(cls, spec: GroupSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if torch.cuda.get_device_capability(device) < SINCE:
            return f"{torch.cuda.get_device_name(device)} is older than compute capability {'.'.join(map(str, SINCE))}"
        return missing()

    def prepare(self, weight: Weight) -> Tensor:
        with torch.cuda.device(self.device):
            return self._op.prepare(weight)

    def weight(self, operand: Tensor) -> Weight:
        return self._op.weight(operand)

    def run(self, x: Tensor, operand: Tensor, bias: Tensor | None) -> Tensor:
        """The call itself, with the linear's device as the current one."""
        if x.get_device() != self.device.index:
            raise ValueError(f"the input of {self.spec} is on {x.device}, its weight on {self.device}")
        flat = x if x.dim() == 2 else x.reshape(-1, self.spec.columns)
        if torch._C._cuda_getDevice() == self.device.index:
            out = self._op(flat, operand, bias)
        else:
            with torch.cuda.device(self.device):
                out = self._op(flat, operand, bias)
        return out if x.dim() == 2 else out.view(*x.shape[:-1], self.spec.rows)

    def __call__(self, x: Tensor, operand: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            one = self.spec
            numbers = (one.rows, one.columns, one.size, one.bits, one.kept, one.symmetric, one.activation_bits)
            return _OPERATOR(x, operand, bias, *numbers, self.layout)
        return self.run(x, operand, bias)


class GroupReference(GroupBackend):
    """Plain torch, any device. Beside the stored bytes it keeps the weight [N, K] in the dtype of the activations
    once it has met them (float32 for INT8 activations): 2 or 4 bytes a weight more."""

    name = "reference"

    def __init__(self, spec: GroupSpec, layout: str, device: torch.device) -> None:
        super().__init__(spec, layout, device)
        self._dequantized: dict[torch.dtype, Tensor] = {}

    @classmethod
    def refusal(cls, spec: GroupSpec, device: torch.device) -> str:
        return ""

    def prepare(self, weight: Weight) -> Tensor:
        decode(weight, self.spec)  # ValueError if it is damaged
        moved = [tensor.detach().to(self.device).contiguous() for tensor in self._ordered(weight)]
        return torch.cat([tensor.view(-1).view(torch.uint8) for tensor in moved])

    def _ordered(self, weight: Weight) -> list[Tensor]:
        named = weight.named()
        return [named[name] for name in self.spec.tensors(self.layout)]

    def weight(self, operand: Tensor) -> Weight:
        named, at = {}, 0
        for name, (shape, dtype) in self.spec.tensors(self.layout).items():
            size = torch.Size(shape).numel() * dtype.itemsize
            # Cloned: a view as another dtype must begin where its numbers may.
            named[name] = operand[at : at + size].clone().view(dtype).view(shape)
            at += size
        return weight_of(named, self.layout)

    def __call__(self, x: Tensor, operand: Tensor, bias: Tensor | None) -> Tensor:
        if self.spec.activation_bits == 16:
            return torch.nn.functional.linear(x, self._of(operand, x.dtype), None if bias is None else bias.to(x.dtype))
        codes, scale = quantize(x.reshape(-1, self.spec.columns), torch.int8)
        out = codes.float() @ self._of(operand, torch.float32).T * scale
        return (out if bias is None else out + bias.float()).to(x.dtype).view(*x.shape[:-1], self.spec.rows)

    def _of(self, operand: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype not in self._dequantized:
            codes, scale = decode(self.weight(operand), self.spec)
            groups = codes.float().view(*scale.shape, self.spec.size) * scale.float()[..., None]
            self._dequantized = {dtype: groups.flatten(1).to(dtype)}
        return self._dequantized[dtype]


GROUP_BACKENDS: dict[str, type[GroupBackend]] = {one.name: one for one in (GroupCuda, GroupReference)}


@dataclass(frozen=True)
class GroupChoice:
    """A backend for a linear. why: a sentence for people."""

    backend: GroupBackend
    why: str


def choose_groups(spec: GroupSpec, layout: str, device: torch.device, wanted: str = "auto") -> GroupChoice:
    """wanted: auto, or the name of a backend. ValueError if it is unknown or cannot run this linear there."""
    if wanted not in ("auto", *GROUP_BACKENDS):
        raise ValueError(f"unknown backend {wanted!r}, known: auto, {', '.join(GROUP_BACKENDS)}")
    if wanted == GroupReference.name:
        return GroupChoice(GroupReference(spec, layout, device), "asked for")
    refusal = GroupCuda.refusal(spec, device)
    if not refusal:
        why = "asked for" if wanted != "auto" else f"the device is {device.type}"
        return GroupChoice(shared(spec, layout, indexed(device)), why)
    if wanted != "auto":
        raise ValueError(f"backend {wanted} cannot run {spec} on {device}: {refusal}; backend auto takes what can")
    if device.type == "cuda":
        logger.warning("%s runs in plain torch, slow: %s", spec, refusal)
        return GroupChoice(GroupReference(spec, layout, device), f"plain torch, slow: {refusal}")
    return GroupChoice(GroupReference(spec, layout, device), f"plain torch: the device is {device.type}")


_SHARED: dict[tuple[GroupSpec, str, torch.device], GroupCuda] = {}


def shared(spec: GroupSpec, layout: str, device: torch.device) -> GroupCuda:
    """The one object of this process, so that launches are made once."""
    key = (spec, layout, device)
    if key not in _SHARED:
        _SHARED[key] = GroupCuda(*key)
    return _SHARED[key]


def _run(
    x: Tensor, operand: Tensor, bias: Tensor | None, rows: int, columns: int, size: int, bits: int, kept: int,
    symmetric: bool, activation_bits: int, layout: str,
) -> Tensor:  # fmt: skip
    spec = GroupSpec(rows, columns, size, bits, kept, symmetric, activation_bits)
    return shared(spec, layout, operand.device).run(x, operand, bias)


def _shape(
    x: Tensor, operand: Tensor, bias: Tensor | None, rows: int, columns: int, size: int, bits: int, kept: int,
    symmetric: bool, activation_bits: int, layout: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], rows))


_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_LIBRARY.define(
    "group_linear(Tensor x, Tensor operand, Tensor? bias, int rows, int columns, int size, int bits, int kept, "
    "bool symmetric, int activation_bits, str layout) -> Tensor"
)
_LIBRARY.impl("group_linear", _run, "CUDA")
torch.library.register_fake(f"{NAMESPACE}::group_linear", _shape, lib=_LIBRARY)
_OPERATOR = getattr(torch.ops, NAMESPACE).group_linear.default
