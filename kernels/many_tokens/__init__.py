"""Quantize, lift, multiply and scale for many tokens, with weights in the order that few tokens read."""
