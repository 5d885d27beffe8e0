"""slideconvert: BF16 language models in, verified 2:L sparse INT8/FP8 SlideSparse checkpoints out."""

__version__ = "0.1.0"
