"""The fused linears of real models, tables of times for them, and errors that pruning them might cause."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slideconvert.allocate.fused import FusedGroup, fuse
from slideconvert.allocate.speed import SpeedTable
from slideconvert.core.patterns import BlockPattern
from slideconvert.models.families import LLAMA

LAYERS = {
    # q, k and v together, o, gate and up together, down: out x in
    "Llama-3.2-1B": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
    "BitNet-2B": [(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)],
    "Llama-3.2-3B": [(5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192)],
    "Qwen2.5-7B": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)],
    "Qwen2.5-14B": [(7168, 5120), (5120, 5120), (27648, 5120), (5120, 13824)],
}
"""The published models, smallest layer first."""
LLAMA_70B = [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)]


def patterns(*names: str) -> list[BlockPattern]:
    return [BlockPattern.parse(name) for name in names]


HEAD = "gpu,scheme,model,linears,tokens,dense,2:4,2:8\n"


def table_of(folder: Path, text: str) -> SpeedTable:
    (folder / "times.csv").write_text(text)
    return SpeedTable.load(str(folder / "times.csv"))


def model(layers: int, layer: Sequence[tuple[int, int]] = LAYERS["Llama-3.2-1B"]) -> list[FusedGroup]:
    """The fused groups of a model: q, k, v in the proportions 4, 1, 1 and gate, up in two halves."""
    (qkv, width), (o, inner), (gate_up, _), (down, hidden) = layer
    outs = [qkv * 4 // 6, qkv // 6, qkv // 6, o, gate_up // 2, gate_up // 2, down]
    ins = [width, width, width, inner, width, width, hidden]
    linears = LLAMA.decoder_linears({"num_hidden_layers": layers})
    shapes = dict(zip(linears, [*zip(outs, ins, strict=True)] * layers, strict=True))
    return fuse(shapes)


def random_errors(
    groups: Sequence[FusedGroup], tried: Sequence[BlockPattern], seed: int
) -> list[dict[BlockPattern, float]]:
    """The fewer weights, the more error; some groups suffer more than others."""
    rng = np.random.default_rng(seed)
    return [
        {pattern: float(rng.lognormal() * (1.05 - pattern.density) * group.weights) for pattern in tried}
        for group in groups
    ]
