"""Rotations of a model's channels, folded into its weights, after which pruning to a pattern loses less."""
