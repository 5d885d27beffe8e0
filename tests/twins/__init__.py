"""Slow and obvious NumPy twins of the library's functions: loops over rows, groups and lanes, no shared code.

`length` is L of a 2:L pattern, None for 2:inf. Weights are integers whose zero is "no weight": codes, or the raw
bits of floats. What a twin and the library agree on was written down twice.
"""
