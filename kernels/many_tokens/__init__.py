"""Quantize, lift, multiply and scale for many tokens on compute capability 9.0, with weights as of few tokens."""
