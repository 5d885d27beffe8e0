"""The plan of one linear: its scheme, pattern and method, from the recipe and from the source.

Also the constraints between linears that servers fuse, and between linears that share channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import Checkpoint
from ..core.patterns import BlockPattern, Pattern
from ..core.schemes import Scheme
from ..errors import InputError
from ..formats.base import Format, StoredLinear
from ..formats.bitnet import read_latent
from ..formats.record import LinearRecord, Record, describe_linear
from ..formats.registry import format_for
from ..models.architecture import FreeChannels, Linear, input_groups, rule_of
from ..models.families import architecture_of
from ..permute.permutations import Permutations, permute_weight
from ..prune import METHODS
from .linear_config import LinearConfig, describe_config
from .presets import Preset


@dataclass(frozen=True)
class LinearPlan:
    """What the conversion does to one linear.

    stored: the linear in the source. scheme, pattern, format, outputs: of the output. method: "" if neither pruning nor
    calibration has anything to do. record: None for a kept linear. moves: whether a calibrated method or training
    changes the remaining weights by more than rounding. permuted: whether its rows or columns are permuted.
    """

    linear: Linear
    stored: StoredLinear
    scheme: Scheme
    pattern: Pattern
    method: str
    format: Format
    outputs: tuple[TensorSpec, ...]
    record: LinearRecord | None
    moves: bool = False
    permuted: bool = False

    @property
    def kept(self) -> bool:
        """Whether the linear is copied byte for byte."""
        return self.record is None

    @property
    def calibrated(self) -> bool:
        """Whether its method needs the inputs of the linear."""
        return bool(self.method) and METHODS[self.method].calibrated

    @property
    def loses(self) -> bool:
        """Whether pruning or rounding changes what the linear computes, which training can make up for."""
        return not self.kept and (bool(self.method) or self.scheme.rounds(self.stored.scheme))

    @property
    def in_training(self) -> LinearPlan:
        """The plan of the same linear if its remaining weights are trained."""
        if self.record is None or self.moves:
            return self
        return replace(self, moves=True, record=replace(self.record, moved=self.record.moved + 1))

    @property
    def on_codes(self) -> bool:
        """Whether the method prunes the codes of quantized weights and keeps their scales."""
        return bool(self.method) and not self.calibrated and self.stored.scheme.quantized

    @property
    def in_scaled(self) -> LinearPlan:
        """The plan of the same linear if its rows or columns are scaled."""
        return self if self.record is None else replace(self, record=replace(self.record, smoothed=True))

    @property
    def zeros_fixed(self) -> bool:
        """Whether training must keep every zero: true for 2:L patterns, false for patterns of whole groups."""
        return self.pattern.zeros_fixed

    @property
    def whole(self) -> bool:
        """Whether its rows depend on each other in pruning or storage, so that they must be converted together."""
        schemes = self.scheme.rows_independent and self.stored.scheme.rows_independent
        return not (schemes and self.pattern.rows_independent)

    @property
    def weights(self) -> int:
        """The number of weights, out × in."""
        return self.stored.shape[0] * self.stored.shape[1]

    @property
    def slid_columns(self) -> int:
        """K' of this linear; 0 if its format does not slide it."""
        sizes = self.pattern.record_fields(self.stored.shape, slid=self.format.slid)
        return int(sizes.get("slid_columns", 0))

    def latent_weights(self, source: Checkpoint, permutations: Permutations, device: str) -> Tensor | None:
        """The latent weights [out, in] float32 of a weight that stays ternary, with their channels permuted, on
        `device`. None for other weights, and if the source has no latent weights."""
        found = read_latent(self.stored, source) if self.scheme.ternary else None
        if found is None:
            return None
        free = architecture_of(source.config).free_channels(source.config)
        moved = permute_weight(self.linear.submodule, found.to(device).float(), permutations, free)
        assert isinstance(moved, Tensor)
        return moved


def plan_linear(
    source: Checkpoint,
    linear: Linear,
    config: LinearConfig,
    preset: Preset | None,
    record: Record | None,
    layout: str,
) -> LinearPlan:
    """The plan of a linear from its config and the preset. InputError if the config is impossible for it.

    record: that of the source, None without one. layout: of the output.
    """
    name = linear.name
    config = config if config.keep else config.resolved(name)
    stored = describe_linear(source, record, name)
    before = record.linears.get(name) if record else None
    kept_before = record is not None and before is None and not describe_config(config)
    if config.keep and stored.coding:
        raise InputError(
            f"{name}: keep copies weights unchanged, but these must be ternarized",
            hint="give the linear pattern 2:inf and scheme bf16 instead",
        )
    if config.keep or kept_before:
        if stored.scheme.quantized:
            raise InputError(f"{name}: keep is for float weights; these are {stored.scheme.name} codes already")
        return LinearPlan(linear, stored, stored.scheme, BlockPattern(None), "", stored.format, stored.tensors, None)
    scheme = stored.scheme.carried_to(config.scheme or stored.scheme, config.codes, name)
    if stored.scheme.quantized and config.scheme:
        raise InputError(
            f"{name}: already quantized to {stored.scheme.name}",
            hint="quantize takes float weights; sparsify, slide and relayout take quantized ones",
        )
    pattern = config.pattern or stored.pattern
    method = _method(
        config.method or (preset.method(pattern) if preset else None), pattern, scheme.rounds(stored.scheme)
    )
    pattern.check_shape(stored.shape, name)
    pattern.check_scheme(scheme, name)
    scheme.check_columns(stored.shape[1], name)
    solved = bool(method) and METHODS[method].calibrated  # such a method finds new codes and scales
    new = stored.coding or stored.scheme.quantized != scheme.quantized or (solved and scheme.quantized)
    dtype = None if new else stored.tensors[-1].dtype  # the dtype of float weights, or of the scales of codes
    done = LinearRecord(
        shape=stored.shape,
        scheme=scheme,
        pattern=pattern,
        method=method or (before.method if before else ""),
        on_codes=(bool(method) and not solved and stored.scheme.quantized) or (before.on_codes if before else False),
        moved=solved + (before.moved if before else 0),
        permuted=before is not None and before.permuted,
        smoothed=before is not None and before.smoothed,
    )
    form = format_for(layout, scheme, pattern)
    outputs = form.specs(name, stored.shape, scheme, pattern, dtype=dtype)
    return LinearPlan(linear, stored, scheme, pattern, method, form, outputs, done, solved)


def _method(name: str | None, pattern: Pattern, finds_codes: bool) -> str:
    """The method, or "" if it has nothing to do: no pattern to prune to, and no codes to find by calibration."""
    if name is None:
        return ""
    method = METHODS[name]
    return name if (method.prunes and pattern.prunes) or (method.calibrated and finds_codes) else ""


def permuted(linears: list[LinearPlan], free: Iterable[FreeChannels]) -> list[LinearPlan]:
    """The same plans, with `permuted` set for linears whose channels will be permuted: where calibration prunes the
    consumer of the channels, and none of the linears involved is kept."""
    by_name = {plan.linear.name: plan for plan in linears}
    for plan in linears:
        for channels in free:
            if plan.linear.submodule != channels.consumer or not (plan.calibrated and plan.pattern.permuted_block):
                continue
            prefix = plan.linear.name.removesuffix(channels.consumer)
            producers = [producer.submodule for producer in channels.producers]
            together = [by_name[prefix + submodule] for submodule in (*producers, channels.consumer)]
            if any(one.record is None for one in together):
                continue
            for one in together:
                assert one.record is not None
                by_name[one.linear.name] = replace(one, permuted=True, record=replace(one.record, permuted=True))
    return list(by_name.values())


def _describe_scheme(scheme: Scheme) -> list[str]:
    return [scheme.name, *(f"{name} {value}" for name, value in scheme.describe().items())]


def sibling_problems(linears: list[LinearPlan]) -> list[InputError]:
    """An InputError for every group of linears that servers fuse into one matrix but whose configs differ."""
    by_name = {plan.linear.name: plan for plan in linears}
    problems = []
    for group in input_groups(plan.linear for plan in linears):
        found = {
            plan.linear.kind: "kept" if plan.kept else " ".join([*_describe_scheme(plan.scheme), str(plan.pattern)])
            for plan in (by_name[linear.name] for linear in group)
        }
        if len(set(found.values())) > 1:
            what = ", ".join(f"{kind}: {config}" for kind, config in found.items())
            rule = rule_of(linear.submodule for linear in group)
            problems.append(
                InputError(
                    f"layer {group[0].layer}: {what}; they are fused in serving, so their settings must agree",
                    hint=f"write one rule for all of them, such as match: '*.{rule}'",
                )
            )
    return problems
