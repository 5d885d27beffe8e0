"""The result of calibrating a layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.quantize import Weight
from ..permute.permutations import Permutations
from ..recover.options import Curve


@dataclass
class LayerResult:
    """The compressed linears of a layer, by submodule, without kept linears.

    weights: as stored, ternary ones as codes in every scheme. activation_errors: of linears with calibrated neighbours,
    `activation_error` of the source's weights. notes: of calibrated linears, anything degraded or unusual, as text.
    permutations: of the layer's channels; weights are those of the permuted layer. curve: the losses of
    block recovery; end: of end-to-end recovery; None without it.
    """

    weights: dict[str, Weight] = field(default_factory=dict)
    activation_errors: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    permutations: Permutations = field(default_factory=dict)
    curve: Curve | None = None
    end: Curve | None = None
