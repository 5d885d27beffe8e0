"""What the tables of published systems measure, as loads of `bench serve`.

GQSA (arXiv 2412.17560), Llama-7B and 13B, one sequence after a prompt of 15 tokens, on an A800, FasterTransformer:
table 10 compares pruning and quantization at 128 tokens, table 13 throughput, whose lengths it does not state, and
table 16 latency and memory by length. Its W2 and its pruning in 16 bits have no counterpart here. 2:4 is INT8's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """model: the shapes. precisions, patterns: of `bench serve`. prompt: tokens. lengths: tokens of outputs."""

    model: str
    precisions: tuple[str, ...]
    patterns: tuple[str, ...]
    prompt: int
    lengths: tuple[int, ...]

    def quick(self) -> Preset:
        """One length, 16 bits against four bits with the highest sparsity."""
        return replace(self, precisions=("bf16", "w4a16"), patterns=("1x16:50%",), lengths=self.lengths[:1])


GQSA = Preset("Llama-2-7B", ("bf16", "w8a16", "w4a16", "int8"), ("1x16:50%", "2:4"), 15, (128,))
PRESETS = {
    "gqsa-table-10": GQSA,
    "gqsa-table-13": replace(GQSA, precisions=("bf16", "w8a16", "w4a16"), patterns=("1x16:50%",)),
    "gqsa-table-16": replace(GQSA, patterns=("1x16:30%", "1x16:40%", "1x16:50%", "2:4"), lengths=(128, 256, 512, 1024)),
}
"""By the names of core.choices.SERVED."""
