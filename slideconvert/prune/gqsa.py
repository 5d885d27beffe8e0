"""The first step of GQSA as its paper has it: the least salient groups go, what is left is rounded to nearest.

Training, block by block and then end to end, is left to make up for it (recover/). Method gqsa does the same step as
`obs` does it for 2:L patterns, which leaves training much less to do: a mask found for all groups at once, the
survivors solved for again, rounding that is made up for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import GroupPattern, Pattern
from ..core.schemes import Scheme
from ..core.select import apply_mask
from .groups import saliency as group_saliency
from .obs import Solved
from .statistics import Statistics
from .sweep import damp


def saliency(
    weight: Tensor, statistics: Statistics, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> Solved:
    """weight [N, K] float32 -> its salient groups (GQSA, section 3.1 and 3.2), to nearest codes of the scheme."""
    assert isinstance(pattern, GroupPattern)
    damped = damp(statistics.whole.gram)
    weight = torch.where(damped.dead, torch.zeros_like(weight), weight)
    keep = pattern.select(group_saliency(weight, damped, pattern))
    pruned = apply_mask(weight, keep)
    return Solved(scheme.store(pruned), damped.notes)
