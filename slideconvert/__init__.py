"""slideconvert: BF16 language models in, verified 2:L sparse INT8/FP8 SlideSparse checkpoints out."""

from .runtime import hook

__version__ = "0.1.0"

hook.install()
