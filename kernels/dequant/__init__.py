"""Scales and bias on the sums of a GEMM."""
