"""Quantize, lift, multiply and scale for at most 64 tokens, with weights as fragments of the tensor cores' operands."""
