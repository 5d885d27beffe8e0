"""Integer codes with one scale per group of columns, in either layout of kernels/groups.py.

packed   weight_packed, weight_scale, weight_shape: pack-quantized of compressed-tensors, every group present
gqs      weight_row_index, weight_groups, weight_values, weight_scale of the groups that are kept: block sparse rows
         (GQSA); stock loaders refuse it
both     weight_zero_point, if they are asymmetric
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import DTYPE_NAMES
from ..core.patterns import Pattern
from ..core.quantize import QuantizedWeight, Weight
from ..core.schemes import Scheme
from ..errors import InputError, PatternError
from ..kernels.group_spec import GroupSpec
from ..kernels.groups import DenseGroups, Groups, canonical, kept_groups, pack, pack_dense, unpack_dense
from ..kernels.groups import unpack as unpack_groups
from ..runtime.slidesparse_record import GQS, GQS_FORMAT
from .base import DAMAGED, Format, Found, StoredLinear

Parts = tuple[Tensor, Tensor, Tensor | None]
"""Codes [N, K], and scale and zero point [N, K/G], of all groups."""


class GroupCodes(Format):
    """What both layouts have in common."""

    canonical: ClassVar[bool] = True
    asymmetric: ClassVar[bool] = True

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return scheme.grouped

    def match(self, found: Found) -> bool:
        return found.declared is not None and self.stores(found.declared.scheme, whole_groups=True)

    @abstractmethod
    def _pack(self, codes: Tensor, scale: Tensor, zero: Tensor | None, spec: GroupSpec) -> dict[str, Tensor]:
        """The tensors by the last part of their names. ValueError if codes and zero points do not fit."""

    @abstractmethod
    def _unpack(self, parts: dict[str, Tensor], spec: GroupSpec) -> Parts:
        """The inverse of `_pack`. ValueError for damage."""

    def describe(self, found: Found) -> StoredLinear:
        assert found.declared is not None
        declared = found.declared
        expected = self.specs(found.name, declared.shape, declared.scheme, declared.pattern)
        tensors = found.check(expected, declared.scheme)
        return StoredLinear(found.name, declared.shape, declared.scheme, declared.pattern, self, tensors)

    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        parts = self.linear_spec(shape, scheme, pattern).tensors()
        return tuple(TensorSpec(f"{name}.{part}", DTYPE_NAMES[kind], size) for part, (size, kind) in parts.items())

    def linear_spec(self, shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> GroupSpec:
        kept, bits = pattern.kept_groups(shape, scheme.group), scheme.activation_bits
        return GroupSpec(*shape, scheme.group, scheme.bits, kept, scheme.symmetric, bits, self.layout)

    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        assert isinstance(weight, QuantizedWeight)
        rows, columns = weight.codes.shape
        spec = self.linear_spec((rows, columns), weight.scheme, pattern)
        scale, zero = canonical(weight.codes, weight.scale, weight.zero, spec)
        try:
            parts = self._pack(weight.codes, scale, zero, spec)
        except ValueError as error:
            raise PatternError(f"{name}: {error}", hint="this is a defect: report it") from error
        return {f"{name}.{part}": tensor for part, tensor in parts.items()}

    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        parts = {name.removeprefix(f"{stored.name}."): tensor for name, tensor in tensors.items()}
        try:
            codes, scale, zero = self._unpack(parts, self.linear_spec(stored.shape, stored.scheme, stored.pattern))
        except ValueError as error:
            raise InputError(f"{where}: {error}", hint=DAMAGED) from error
        return QuantizedWeight(codes, scale, stored.scheme, None if stored.scheme.symmetric else zero)


class PackedGroups(GroupCodes):
    """pack-quantized: absent groups are stored as zeros."""

    def _pack(self, codes: Tensor, scale: Tensor, zero: Tensor | None, spec: GroupSpec) -> dict[str, Tensor]:
        return pack_dense(codes, scale, zero, spec).named()

    def _unpack(self, parts: dict[str, Tensor], spec: GroupSpec) -> Parts:
        return unpack_dense(DenseGroups.of(parts), spec)


class Gqs(GroupCodes):
    """Block sparse rows: absent groups take no space."""

    layout: ClassVar[str] = GQS
    takes: ClassVar[str] = "w4a16, w4a8 and w8a16 weights that lost whole groups"
    description: ClassVar[str] = "block sparse rows, which store only the groups that were not pruned"

    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        return whole_groups and super().stores(scheme, whole_groups=whole_groups)

    def match(self, found: Found) -> bool:
        return super().match(found) and found.has("weight_row_index")

    def ct_format(self, scheme: Scheme) -> str:
        return GQS_FORMAT

    def _pack(self, codes: Tensor, scale: Tensor, zero: Tensor | None, spec: GroupSpec) -> dict[str, Tensor]:
        return pack(codes, scale, zero, kept_groups(codes, spec), spec).named()

    def _unpack(self, parts: dict[str, Tensor], spec: GroupSpec) -> Parts:
        return unpack_groups(Groups.of(parts), spec)[:3]
