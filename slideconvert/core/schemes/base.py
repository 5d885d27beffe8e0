"""The interface of all number schemes: how a weight and its activations are stored and scaled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...kernels.sparse_gemm.reference import code_floats
from ..choices import FULL
from ..quantize import Grid, QuantizedWeight, Weight


@dataclass(frozen=True)
class Scheme(ABC):
    """One number scheme.

    name: its name on the command line, in recipes and records.
    dtype: name of the torch dtype of codes in memory; stored codes have `bits`.
    bits: of one stored weight.
    activation_bits: 8 where activations are quantized per token, 16 where they stay floats.
    group: consecutive weights of a row that share a scale; 0 where the whole row does.
    symmetric: whether zero is the code in the middle.
    ternary: a constraint on the weights, not on their storage: all are -1, 0 or 1 times the scale of their row.
    """

    quantized: ClassVar[bool] = True
    """Whether weights are codes times a scale."""
    rows_independent: ClassVar[bool] = True
    """Whether a row is stored, and its codes compare, without regard to other rows and to groups within it."""
    ct_type: ClassVar[str] = ""
    """The number type in compressed-tensors."""
    ct_format: ClassVar[str] = ""
    """The format of the dense layout in compressed-tensors."""
    scale_unit: ClassVar[str] = ""
    """The weights that share one scale, as text."""

    name: str
    dtype: str
    bits: int
    activation_bits: int = 8
    group: int = 0
    symmetric: bool = True
    ternary: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of codes in memory."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def grouped(self) -> bool:
        """Whether scales belong to groups of weights, and codes are packed."""
        return self.group > 0

    @property
    def top(self) -> int:
        """The largest stored code of groups; the smallest is 0."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric groups, and of groups without weights."""
        return 1 << (self.bits - 1)

    @property
    def as_ternary(self) -> Scheme:
        """The same storage for weights that stay ternary."""
        return replace(self, ternary=True)

    @property
    def unconstrained(self) -> Scheme:
        """The same storage for weights that may take any code."""
        return replace(self, ternary=False)

    @property
    def code_scheme(self) -> Scheme:
        """The scheme in which solvers and training find codes: itself, if it has any."""
        return self

    def resized(self, group: int | None, symmetric: bool | None, where: str) -> Scheme:
        """The scheme with these groups; None: as usual. InputError if it has no groups and one is given."""
        for option, value in (("group_size", group), ("symmetric", symmetric)):
            if value is not None:
                raise no_groups(option, self.name, where)
        return self

    def check_whole_groups(self, size: int, where: str) -> None:
        """Raise InputError unless the pattern may zero whole groups of `size` weights of this scheme."""
        raise InputError(
            f"{where}: whole groups are pruned, but scheme {self.name} has no groups",
            hint="use w4a16, w4a8 or w8a16 (or bf16, to prune only), from the unquantized model",
        )

    def for_whole_groups(self, size: int, symmetric: bool | None, where: str) -> Scheme:
        """The scheme of a linear whose pattern zeroes whole groups of `size` weights. InputError if it has none."""
        self.check_whole_groups(size, where)
        if symmetric is not None:
            raise no_groups("symmetric", self.name, where)
        return self

    def carried_to(self, target: Scheme, codes: str | None, where: str) -> Scheme:
        """The scheme of weights of this one, stored as `target`: ternary weights stay ternary unless `codes` is FULL.

        InputError for `codes` of weights that are not ternary, and for a target that cannot keep them ternary.
        """
        if codes and not self.ternary:
            raise InputError(
                f"{where}: codes: {codes}, but its weights are not ternary",
                hint="only BitNet models have ternary weights: leave --codes out",
            )
        if not self.ternary or codes == FULL:
            return target.unconstrained
        target.check_ternary(where)
        return target.as_ternary

    def rounds(self, stored: Scheme) -> bool:
        """Whether weights of `stored` must be rounded to codes of this scheme; ternary codes are codes of every one."""
        return self.quantized and not stored.ternary

    def check_ternary(self, where: str) -> None:
        """Raise InputError if ternary weights cannot be stored without becoming full codes."""
        return

    def check_columns(self, columns: int, where: str) -> None:
        """Raise InputError if rows of `columns` weights do not fit."""
        return

    @abstractmethod
    def grid(self, weight: Tensor) -> Grid:
        """weight [out, in] float -> the grid that it spans, per row or per group. InputError without codes."""

    @abstractmethod
    def to_codes(self, scaled: Tensor, zero: Tensor | None = None) -> Tensor:
        """Weights in units of their scale, float32 -> nearest codes, ties to even, saturating. Overwrites `scaled`.

        zero: the zero points of these weights, float32; groups need them.
        """

    def nearest(self, scaled: Tensor) -> Tensor:
        """The same codes as float32, of schemes without zero points. Overwrites `scaled`."""
        return code_floats(self.to_codes(scaled))

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """weight [out, in] float, finite -> codes and scale. Zeros stay exactly +0. InputError without codes."""
        return self.grid(weight).round(weight)

    def store(self, weight: Weight) -> Weight:
        """A weight in the form that this scheme stores: floats are rounded, codes stay codes with their scale.

        Ternary codes become those of this scheme, and are quantized like any float weight where the scheme is not
        ternary: -1 and 1 become the largest codes.
        """
        if isinstance(weight, Tensor):
            return self.quantize(weight)
        if not self.keeps(weight):
            return self.quantize(weight.dequantize())
        if weight.scheme == self:
            return weight
        return replace(weight, codes=weight.codes.to(self.torch_dtype), scheme=self)

    def keeps(self, weight: Weight) -> bool:
        """Whether `store` changes nothing about what the weight stands for."""
        return isinstance(weight, QuantizedWeight) and weight.scheme.ternary <= self.ternary

    def by_column(self, values: Tensor, columns: int) -> Tensor:
        """Scales or zero points, one for each row or group -> one for each weight [out, columns]; may be a view."""
        return values.expand(-1, columns)

    def by_visit(self, values: Tensor, order: Tensor) -> Tensor:
        """The same for columns in this order, column by column: [in, out]."""
        return values.T.expand(len(order), -1)

    def multiply(self, codes: Tensor, scale: Tensor) -> Tensor:
        """codes [out, in] float32 times their scales. Overwrites `codes`."""
        return codes.mul_(scale)

    def rounding_error(self, values: Tensor, scale: Tensor) -> Tensor:
        """The largest error that rounding makes of values [out, in]; scale float32, one for each row or group."""
        return self.by_column(scale, values.shape[1]) * 0.5

    def check_codes(self, codes: Tensor, where: str) -> None:
        """Raise InputError if codes [out, in] are not valid in this scheme."""
        if self.ternary and not torch.equal(codes.float().abs(), codes.float().ne(0).float()):
            raise InputError(
                f"{where}: the record says ternary, but not all weights are -1, 0 or 1 times the row's scale"
            )

    def describe(self) -> dict[str, Any]:
        """The parameters of the storage that the name leaves open, for records."""
        return {}

    def constraint(self) -> dict[str, Any]:
        """The constraint on the weights, for records."""
        return {"ternary": True} if self.ternary else {}

    def described(self, fields: Mapping[str, Any]) -> Scheme:
        """This scheme with the fields that `describe` and `constraint` wrote. InputError, KeyError or ValueError."""
        return self.as_ternary if fields.get("ternary") else self

    @property
    def label(self) -> str:
        """The name with its parameters, for people: "w4a16 g16 symmetric"."""
        return self.name

    def config_group(self, targets: list[str], storage: str) -> dict[str, Any]:
        """The compressed-tensors config group for these targets, with `storage` as its format.

        Only keys that stock transformers and stock vLLM accept: anything more is a validation error there.
        """
        tokens = {"num_bits": 8, "type": self.ct_type, "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "weights": {"num_bits": self.bits, "type": self.ct_type, **self._ct_weights(), "dynamic": False},
            "input_activations": tokens if self.activation_bits == 8 else None,
            "format": storage,
        }

    def _ct_weights(self) -> dict[str, Any]:
        return {"symmetric": True, "strategy": "channel"}


def no_groups(option: str, name: str, where: str) -> InputError:
    """The error for an option of groups where the scheme has none."""
    return InputError(
        f"{where}: {option}, but scheme {name} has no groups", hint="use w4a16, w4a8 or w8a16, or omit it"
    )
